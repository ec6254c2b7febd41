"""Kernels of the wire server. A cell is lines of a small language of its own; its events are kept and numbered.

print TEXT · err TEXT · value TEXT · html TEXT · png · show ID TEXT · update ID TEXT · clear · clear wait · emit N
raise NAME TEXT · sleep (until interrupted) · die
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.integration.sdk.wire_answers import Answer, Seen, of, problem

Event = dict[str, Any]
PNG = b"\x89PNG\r\n\x1a\nnot really"


@dataclass
class Execution:
    id: str
    kernel: Kernel
    count: int
    events: list[Event] = field(default_factory=list)
    ended: bool = False
    reader: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)

    def say(self, event: str, **members: Any) -> None:
        self.events.append({"event": event, "seq": len(self.events) + 1, **members})
        self.ended = event == "end"
        if self.ended:
            self.kernel.running = None
            self.kernel.idle.set()
        self.changed.set()
        self.changed = asyncio.Event()

    def taken_over(self) -> None:
        """Another reader came."""
        self.reader += 1
        self.changed.set()
        self.changed = asyncio.Event()

    def end(self, status: str, **members: Any) -> None:
        self.say(
            "end", status=status, execution_count=self.count, duration=0.5, **{"state_lost": False, **members}
        )


@dataclass
class Kernel:
    id: str
    language: str
    count: int = 0
    dead: bool = False
    running: Execution | None = None
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    executions: dict[str, Execution] = field(default_factory=dict)

    def object(self) -> dict[str, Any]:
        state = "dead" if self.dead else "busy" if self.running else "idle"
        return {
            "id": self.id,
            "language": self.language,
            "implementation": "none of the real ones",
            "state": state,
            "execution": self.running.id if self.running else None,
            "execution_count": self.count,
            "pid": 9,
            "created_at": "2026-11-28T15:00:00Z",
            "last_active_at": "2026-11-28T15:00:00Z",
        }


class Kernels:
    """All kernels of a session, and the routes below `/kernels`."""

    def __init__(self) -> None:
        self.all: dict[str, Kernel] = {}
        self.by_key: dict[str, Execution] = {}
        self.cells: list[str] = []
        self.more_after = 50  # events

    def route(self, seen: Seen, rest: list[str]) -> Answer:
        if not rest:
            return of({"kernels": [kernel.object() for kernel in self.all.values()]})
        if rest[1:] == ["execute"]:
            return self._execute(seen, rest[0])
        if seen.method == "PUT":
            there = self.all.get(rest[0])
            if there is not None and there.language != seen.json["language"]:
                return problem(409, "kernel_exists", "with another language")
            kernel = self.all.setdefault(rest[0], Kernel(rest[0], seen.json["language"]))
            return of(kernel.object(), 200 if there else 201)
        kernel = self.all.get(rest[0])
        if kernel is None:
            return problem(404, "kernel_not_found", f"no kernel {rest[0]}")
        match (seen.method, rest[1:]):
            case ("GET", []):
                return of(kernel.object())
            case ("DELETE", []):
                del self.all[kernel.id]
                return Answer(204)
            case ("GET", ["executions", id]):
                if id not in kernel.executions:
                    return problem(404, "kernel_not_found", f"no execution {id}")
                return self._stream(kernel.executions[id], int(seen.query.get("after", "0")))
            case ("POST", ["interrupt"]):
                running = kernel.running
                if running is not None and seen.json.get("execution", running.id) == running.id:
                    running.interrupted.set()
                return of(kernel.object())
            case ("POST", ["restart"]):
                self.all[kernel.id] = Kernel(kernel.id, kernel.language)
                return of(self.all[kernel.id].object())
        return problem(404, "not_found", seen.path)

    def _execute(self, seen: Seen, id: str) -> Answer:
        known = self.by_key.get(seen.headers.get("idempotency-key", ""))
        if known is not None:
            return self._stream(known, 0)
        kernel, create = self.all.get(id), seen.json.get("create")
        if create is not None and (kernel is None or kernel.dead):
            kernel = self.all[id] = Kernel(id, create["language"])
        if kernel is None:
            return problem(404, "kernel_not_found", f"no kernel {id}")
        if kernel.dead:
            return problem(409, "kernel_dead", "it died")
        if kernel.running is not None and "wait" not in seen.json:
            return problem(409, "kernel_busy", "it runs another cell", retryable=True, retry_after="1")
        return Answer(events=self._when_idle(kernel, seen))

    async def _when_idle(self, kernel: Kernel, seen: Seen) -> AsyncIterator[Event]:
        while kernel.running is not None:
            kernel.idle.clear()
            await kernel.idle.wait()
        kernel.count += 1
        execution = Execution(f"e-{len(self.cells)}", kernel, kernel.count)
        kernel.running = kernel.executions[execution.id] = execution
        self.by_key[seen.headers.get("idempotency-key", "")] = execution
        self.cells.append(seen.json["code"])
        execution.say("start", execution=execution.id, kernel=kernel.id, execution_count=execution.count)
        running = asyncio.get_running_loop().create_task(self._cell(execution, seen.json["code"]))
        async for event in self._events(execution, 0):
            yield event
        del running

    async def _cell(self, execution: Execution, code: str) -> None:
        for line in code.splitlines():
            verb, _, text = line.strip().partition(" ")
            if not await self._line(execution, verb, text):
                return
        execution.end("ok")

    async def _line(self, execution: Execution, verb: str, text: str) -> bool:
        """One line; whether the cell goes on."""
        match verb:
            case "print" | "err":
                execution.say("stdout" if verb == "print" else "stderr", text=text + "\n")
            case "value":
                execution.say(
                    "execute_result", data={"text/plain": text}, metadata={}, execution_count=execution.count
                )
            case "html":
                execution.say("display_data", data={"text/html": text, "text/plain": "<html>"}, metadata={})
            case "png":
                encoded = base64.b64encode(PNG).decode()
                execution.say(
                    "display_data", data={"image/png": encoded, "text/plain": "<Figure>"}, metadata={}
                )
            case "show" | "update":
                id, _, shown = text.partition(" ")
                event = "display_data" if verb == "show" else "update_display_data"
                execution.say(event, data={"text/plain": shown}, metadata={}, display_id=id)
            case "clear":
                execution.say("clear_output", wait=text == "wait")
            case "emit":
                for number in range(int(text)):
                    execution.say("stdout", text=f"{number}\n")
                    await asyncio.sleep(0)
            case "new":
                execution.say("something_new", text=text)
            case "raise":
                name, _, value = text.partition(" ")
                lines = ["Cell In[1], line 1", f"{name}: {value}"]
                execution.say("error", name=name, value=value, traceback=lines)
                execution.end("error")
                return False
            case "sleep":
                await execution.interrupted.wait()
                execution.say("error", name="KeyboardInterrupt", value="", traceback=["KeyboardInterrupt: "])
                execution.end("interrupted")
                return False
            case "die":
                execution.kernel.dead = True
                execution.end("kernel_died", state_lost=True, reason="it was killed by SIGSEGV")
                return False
        return True

    def _stream(self, execution: Execution, after: int) -> Answer:
        return Answer(events=self._events(execution, after))

    async def _events(self, execution: Execution, after: int) -> AsyncIterator[Event]:
        execution.reader += 1
        reader, at = execution.reader, after
        while True:
            changed = execution.changed
            for event in execution.events[at:]:
                if at - after >= self.more_after:
                    yield {"event": "more", "after": at}
                    return
                yield event
                at += 1
            if execution.ended and at == len(execution.events):
                return
            if reader != execution.reader:
                yield {"event": "replaced"}
                return
            if changed is execution.changed:
                await changed.wait()
