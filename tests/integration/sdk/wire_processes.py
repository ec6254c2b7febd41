"""Processes of the wire server: programs are coroutines, and their output is kept and confirmed as the wire says.

It keeps everything until it is confirmed and lets the program wait beyond a bound; grace periods never end here.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from tests.integration.sdk.wire_answers import Answer, Seen, of, problem

Event = dict[str, Any]
PIECE = 1000  # bytes of an event
STREAMS = ("stdout", "stderr")


def pattern(size: int) -> bytes:
    """Bytes of which each place can be told from every other; not UTF-8, and with characters of several bytes."""
    line = b"".join(b"%d \xc3\xa4\xe2\x82\xac\xff\n" % number for number in range(size // 8 + 1))
    return line[:size]


@dataclass
class Process:
    """One process. `output` is all that it wrote; `confirmed` how much of that no reader wants again."""

    id: str
    asked: dict[str, Any]
    output: dict[str, bytearray] = field(default_factory=lambda: {name: bytearray() for name in STREAMS})
    confirmed: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    input: bytearray = field(default_factory=bytearray)
    stdin_open: bool = False
    exit_code: int | None = None
    signal: str | None = None
    size: dict[str, int] | None = None
    reader: int = 0
    ring: int | None = None  # of a background process: how much is kept
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    @property
    def argv(self) -> list[str]:
        return list(self.asked["command"]) if "command" in self.asked else str(self.asked["shell"]).split()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()

    def start_of(self, name: str) -> int:
        """The first byte that is still kept."""
        return 0 if self.ring is None else max(0, len(self.output[name]) - self.ring)

    async def write(self, name: str, data: bytes, bound: int) -> None:
        """Output of the program, which waits while too much is not confirmed."""
        for at in range(0, len(data), PIECE):
            while self.ring is None and len(self.output[name]) - self.confirmed[name] >= bound:
                await self.changed.wait()
            self.output[name] += data[at : at + PIECE]
            self.wake()
            await asyncio.sleep(0)

    def end(self, exit_code: int, signal: str | None = None) -> None:
        if self.exit_code is None:
            self.exit_code, self.signal, self.stdin_open = exit_code, signal, False
            self.wake()

    def object(self) -> dict[str, Any]:
        kept = {name: {"start": self.start_of(name), "end": len(self.output[name])} for name in STREAMS}
        return {
            "id": self.id,
            "pid": 7,
            "command": self.asked.get("command"),
            "shell": self.asked.get("shell"),
            "working_dir": self.asked.get("working_dir", "/workspace"),
            "background": self.asked.get("background", False),
            "pty": self.size,
            "state": "running" if self.exit_code is None else "exited",
            "stdin": "open" if self.stdin_open else "closed",
            "exit_code": self.exit_code,
            "signal": self.signal,
            "timed_out": False,
            "started_at": "2026-11-28T15:00:00Z",
            "ended_at": None if self.exit_code is None else "2026-11-28T15:00:01Z",
            "duration": 1.0,
            **kept,
        }


class Processes:
    """All processes of a session, and the routes below `/processes`."""

    def __init__(self) -> None:
        self.all: dict[str, Process] = {}
        self.started: list[list[str]] = []
        self.inputs: list[bytearray] = []
        self.by_key: dict[str, str] = {}
        self.unconfirmed_max = 64 * 1024
        self.more_after = 16 * 1024
        self.ring = 4096
        self.stdin_takes = 1 << 30  # bytes of one call; fewer is a pipe that is full

    def route(self, seen: Seen, rest: list[str]) -> Answer:
        if not rest:
            if seen.method == "GET":
                return of({"processes": [p.object() for p in self.all.values()], "next_cursor": None})
            return self._start(seen)
        process = self.all.get(rest[0])
        if process is None:
            return problem(404, "process_not_found", f"no process {rest[0]}")
        match (seen.method, rest[1:]):
            case ("GET", []):
                return of(process.object())
            case ("DELETE", []):
                self._kill(process)
                del self.all[process.id]
                return Answer(204)
            case ("GET", ["output"]):
                return self._stream(process, seen)
            case ("POST", ["stdin"]):
                return self._stdin(process, seen)
            case ("POST", ["signal"]):
                return self._signal(process, seen.json)
            case ("POST", ["resize"]):
                if process.size is None:
                    return problem(409, "not_a_terminal", "no terminal")
                process.size = seen.json
                return of(process.object())
        return problem(404, "not_found", seen.path)

    def _start(self, seen: Seen) -> Answer:
        key = seen.headers.get("idempotency-key", "")
        process = self.all.get(self.by_key.get(key, ""))
        if process is not None and process.asked != seen.json:
            return problem(409, "idempotency_conflict", "another body")
        if process is None:
            process = Process(f"p-{len(self.started)}", seen.json)
            process.stdin_open = seen.json.get("stdin") == "open" or "pty" in seen.json
            process.input += base64.b64decode(seen.json.get("input_base64", ""))
            process.size = seen.json.get("pty")
            process.ring = self.ring if seen.json.get("background") else None
            self.all[process.id] = process
            self.by_key[key] = process.id
            self.started.append(process.argv)
            self.inputs.append(process.input)
            process.task = asyncio.get_running_loop().create_task(self._program(process))
        if process.ring is not None:
            return of(process.object(), 201, location=f"{seen.path}/{process.id}")
        return self._stream(process, seen)

    async def _program(self, process: Process) -> None:
        match process.argv:
            case ["emit", size, *streams]:
                for name in streams or ["stdout"]:
                    await process.write(name, pattern(int(size)), self.unconfirmed_max)
                process.end(0)
            case ["cat"]:
                done = 0
                while process.stdin_open or done < len(process.input):
                    data, done = bytes(process.input[done:]), len(process.input)
                    await process.write("stdout", data, self.unconfirmed_max)
                    if process.stdin_open and done == len(process.input):
                        await process.changed.wait()
                process.end(0)
            case ["exit", code]:
                await process.write("stderr", b"ended\n", self.unconfirmed_max)
                process.end(int(code))
            case ["echo", *words]:
                await process.write("stdout", " ".join(words).encode() + b"\n", self.unconfirmed_max)
                process.end(0)
            case ["sleep"]:
                pass  # until a signal comes
            case [name, *_]:
                await process.write("stderr", f"{name}: not found\n".encode(), self.unconfirmed_max)
                process.end(127)

    def _stream(self, process: Process, seen: Seen) -> Answer:
        at = {name: int(seen.query.get(name, "0")) for name in STREAMS}
        process.confirmed = {name: max(at[name], process.confirmed[name]) for name in STREAMS}
        process.reader += 1
        process.wake()
        follow = seen.query.get("follow", "true") == "true"
        return Answer(events=self._events(process, at, process.reader, follow))

    async def _events(
        self, process: Process, at: dict[str, int], reader: int, follow: bool
    ) -> AsyncIterator[Event]:
        yield {"event": "start", "id": process.id, "pid": 7, "started_at": "2026-11-28T15:00:00Z"}
        sent = 0
        while True:
            changed = process.changed
            for name in STREAMS:
                start = process.start_of(name)
                if at[name] < start:
                    yield {"event": "gap", "stream": name, "from": at[name], "to": start}
                    at[name] = start
                while at[name] < len(process.output[name]):
                    if sent >= self.more_after and process.ring is None:
                        yield {"event": "more", **at}
                        return
                    data = bytes(process.output[name][at[name] : at[name] + PIECE])
                    encoded = base64.b64encode(data).decode()
                    yield {"event": name, "offset": at[name], "data_base64": encoded}
                    at[name] += len(data)
                    sent += len(data)
            if process.ring is None and reader != process.reader:
                yield {"event": "replaced"}
                return
            if process.exit_code is not None and all(at[n] == len(process.output[n]) for n in STREAMS):
                yield {
                    "event": "exit",
                    "exit_code": process.exit_code,
                    "signal": process.signal,
                    "timed_out": False,
                    "duration": 1.5,
                    **at,
                }
                return
            if not follow:
                yield {"event": "more", **at}
                return
            if changed is process.changed:
                await changed.wait()

    def _stdin(self, process: Process, seen: Seen) -> Answer:
        if process.exit_code is not None:
            return problem(409, "process_ended", "it has ended")
        if not process.stdin_open and (seen.body or "close" in seen.query):
            return problem(409, "stdin_closed", "its input is closed")
        taken = len(process.input)
        offset = int(seen.query.get("offset", taken))
        if offset > taken:
            return problem(400, "invalid", "the offset is beyond what was accepted")
        new = seen.body[taken - offset :]
        process.input += new[: self.stdin_takes]
        if seen.query.get("close") == "true":
            process.stdin_open = False
        process.wake()
        blocked = {"blocked": True} if len(new) > self.stdin_takes else {}
        return of({"offset": len(process.input), **blocked})

    def _signal(self, process: Process, asked: dict[str, Any]) -> Answer:
        if process.exit_code is not None:
            return problem(409, "process_ended", "it has ended")
        name = str(asked["signal"])
        numbers = {"INT": 2, "KILL": 9, "TERM": 15}
        if not re.fullmatch(r"(SIG)?(INT|KILL|TERM)", name):
            return problem(400, "invalid", f"no signal {name}")
        self._kill(process, numbers[name.removeprefix("SIG")], f"SIG{name.removeprefix('SIG')}")
        return of(process.object())

    def _kill(self, process: Process, number: int = 9, name: str = "SIGKILL") -> None:
        if process.task is not None:
            process.task.cancel()
        process.end(128 + number, name)


def encode(event: Event) -> bytes:
    """A line of a stream, as a chunk."""
    line = json.dumps(event).encode() + b"\n"
    return b"%x\r\n%s\r\n" % (len(line), line)
