"""A Python kernel: forked from the warm fork server, or python3 of the image; its host speaks by a `Link`."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

from agentcube.picod import kernel_events, kernel_forks, kernel_link
from agentcube.picod.kernel_events import Blobs, Nonsense
from agentcube.picod.kernel_life import RLIMIT_LOCKS, Life
from agentcube.picod.kernel_link import Link
from agentcube.picod.problems import Problem

_STEPS_MAX = 40  # characters of a step's name
_COUNT_MAX = 1 << 53
REPEAT_S = 0.5  # until it is said again, at first


class PythonLife(Life):
    """One process with a host in it."""

    program = "python3"
    _link: Link
    _number = 0  # of the last execution
    _begun = True

    async def _launch(self) -> None:
        ours, theirs = kernel_link.pair()
        self._link = Link(self._parts.loop, ours, self._on_message, self._on_broken, self._may_be_large)
        out, out_w = os.pipe()
        err, err_w = os.pipe()
        try:
            with theirs:
                forked = await self._fork(theirs, out_w, err_w)
                if not forked:
                    self._execute_python(theirs, out_w, err_w)
        except BaseException:
            os.close(out)
            os.close(err)
            self._close()
            raise
        finally:
            os.close(out_w)
            os.close(err_w)
        self._link.pid = self.pid
        self._join(self.pid, {"stdout": out, "stderr": err}, ours.fileno(), self._link.take)
        self._link.say("init", json.dumps(self._init(forked=forked)).encode("ascii"))
        self._parts.starter.started()

    async def _fork(self, channel: socket.socket, stdout: int, stderr: int) -> bool:
        """Let the fork server start it. False without one."""
        starter, forks = self._parts.starter, self._parts.forks
        try:
            fds = (channel.fileno(), stdout, stderr, *starter.cgroup_fds)
            pid = await forks.start(fds, self._exited) if forks.usable else None
        except OSError as exc:
            raise Problem("unavailable", f"cannot start another kernel: {exc.strerror}") from exc
        self.pid = pid or 0
        return pid is not None

    def _execute_python(self, channel: socket.socket, stdout: int, stderr: int) -> None:
        starter, place = self._parts.starter, self._place
        argv = (self.program, "-c", kernel_forks.BOOTSTRAP)
        program = starter.program(argv, place.env, place.working_dir)
        sources = kernel_forks.sources_file()
        try:
            self._link.lend(sources)
            child = starter.start(
                program, stdin=channel.fileno(), stdout=stdout, stderr=stderr, guarded=False
            )
        finally:
            os.close(sources)
        self.pid = child.pid
        self._follow(child)

    def _init(self, *, forked: bool) -> dict[str, Any]:
        starter, place = self._parts.starter, self._place
        limits = [[RLIMIT_LOCKS, self._mark, self._mark]]
        if not forked:
            return {"env": None, "working_dir": ".", "rlimits": limits}
        limits += [list(limit) for limit in starter.rlimits]
        where = os.fsdecode(starter.directory(place.working_dir))
        return {"env": place.env, "working_dir": where, "rlimits": limits}

    def _execute(self, code: str, *, silent: bool, store_history: bool) -> None:
        self._number += 1
        self._begun = False
        order = {"n": self._number, "silent": silent, "store_history": store_history}
        self._say_until_begun(order, code.encode("utf-8"), REPEAT_S)

    def _say_until_begun(self, order: dict[str, int], code: bytes, pause_s: float) -> None:
        """Again while it has not begun: its host may have lost it (see kernelhost/channel.py)."""
        if self._begun or order["n"] != self._number or not self._link.open:
            return
        if self._link.has_said_all:
            self._link.say("execute", code, **order)
        self._parts.loop.call_later(pause_s, self._say_until_begun, order, code, 2 * pause_s)

    # What the host says

    def _on_message(self, header: dict[str, Any], blobs: Blobs) -> None:
        self._parts.store.give_large(self._link)
        op = header["op"]
        if not self._ready.done():
            self._on_first(op, header)
        elif op == "begin":
            self._begun = True
            self._owner.began()
        elif op == "event":
            number = kernel_events.whole(header.get("n"), "number", _COUNT_MAX)
            self._owner.told(*kernel_events.event(header, blobs))
            self._link.say("ack", n=number)
        elif op == "end":
            self._count(header)
            ok = kernel_events.flag(header.get("ok"), "ok")
            self._owner.ended(ok=ok, interrupted=kernel_events.flag(header.get("interrupted"), "interrupted"))
        else:
            raise Nonsense(f"an unknown message {op[:40]!r}")

    def _on_first(self, op: str, header: dict[str, Any]) -> None:
        if op == "ready":
            implementation = header.get("implementation")
            if not isinstance(implementation, str) or len(implementation) > 100:
                raise Nonsense("a wrong implementation")
            self._count(header)
            self._is_ready(implementation)
        elif op == "failed":
            number = kernel_events.whole(header.get("errno"), "errno", 4096)
            self._fail_to_start(str(header.get("step"))[:_STEPS_MAX], number)
        else:
            raise Nonsense("something else before it was ready")

    def _count(self, header: dict[str, Any]) -> None:
        self.count = kernel_events.whole(header.get("count"), "count", _COUNT_MAX)

    def _on_broken(self, why: str) -> None:
        self._parts.store.give_large(self._link)
        self.hold("broken")
        if why:
            self.end(why)
        else:
            self._end_soon("it closed its channel")

    def _may_be_large(self) -> bool:
        store = self._parts.store
        if store.take_large(self._link):
            return True
        self.hold("large")
        store.tell(self._link, self._try_again)
        return False

    def _try_again(self) -> None:
        self.release("large")

    def _close(self) -> None:
        self._parts.store.give_large(self._link)
        self._link.close()
