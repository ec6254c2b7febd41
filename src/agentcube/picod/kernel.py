"""One kernel: used by one cell at a time, interrupted, restarted, through all its lives."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from agentcube.durations import format_duration
from agentcube.picod import processes
from agentcube.picod.kernel_bash import BashLife
from agentcube.picod.kernel_events import members
from agentcube.picod.kernel_life import Life, Parts, Place
from agentcube.picod.kernel_python import PythonLife
from agentcube.picod.kernel_run import Execution, Order
from agentcube.picod.messages import rfc3339
from agentcube.picod.problems import Problem

LINE_MAX = 64  # cells that wait for one kernel
EXECUTIONS_MAX = 32  # ended ones that are kept, of one kernel
EXECUTIONS_BYTES_MAX = 8 << 20  # and what they keep together, but for the newest
EXECUTIONS_S = 600.0

LANGUAGES: Mapping[str, type[Life]] = {"python": PythonLife, "bash": BashLife}


@dataclass(frozen=True)
class Design:
    """What a kernel is made as; `place` has the whole environment."""

    language: str
    place: Place


class Kernel:
    """One kernel through all its lives. Owner of the present one (`kernel_life.Owner`)."""

    def __init__(self, parts: Parts, id: str, design: Design) -> None:
        self._parts = parts
        self._loop = parts.loop
        self.id = id
        self.design = design
        self.state = "starting"
        self.reason = ""
        self.current: Execution | None = None
        self.executions: dict[str, Execution] = {}  # in the order of starting
        self._life: Life | None = None
        self._changing = asyncio.Lock()  # starts and restarts come one after the other
        self._line: deque[asyncio.Future[None]] = deque()
        self._promised = False  # the next cell is that of one who waited
        self._ordered: dict[str, tuple[bytes, asyncio.Event]] = {}  # by key: calls that wait in line
        self._overdue: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._count = 0  # cells that were numbered
        self.deleted = False
        self._created_at = self._last_active_at = time.time()

    # Lives

    async def start(self, *, only_if_dead: bool = False) -> None:
        """Begin a life, instead of the present one if there is one. Raises Problem; then it is dead."""
        async with self._changing:
            if only_if_dead and self.state != "dead":
                return
            await self._end_life("the kernel was restarted")
            if self.deleted:
                self.state = "dead"
                raise Problem("kernel_not_found", "the kernel was deleted")
            self.state, self.reason, self._count = "starting", "", 0
            life = self._life = LANGUAGES[self.design.language](self._parts, self.design.place, self)
            try:
                await life.start()
            except BaseException as exc:
                self.state = "dead"
                self.reason = exc.detail if isinstance(exc, Problem) else "its start was broken off"
                self._next()
                raise
            if not life.gone.is_set():  # else `died` has been called
                self.state = "idle"
            self._next()

    async def started(self) -> None:
        """Wait for a start under way."""
        async with self._changing:
            pass

    async def delete(self) -> None:
        """End it for ever. Who waits for it is told."""
        self.deleted = True
        await self._end_life("the kernel was deleted")
        async with self._changing:
            await self._end_life("the kernel was deleted")
        self.state, self.reason = "dead", "the kernel was deleted"
        self._next()
        for execution in list(self.executions.values()):
            self._forget(execution)

    async def _end_life(self, why: str) -> None:
        if self._life is not None:
            await self._life.kill(why)

    def note(self, pid: int, reason: str) -> bool:
        """PicoD has killed `pid`: tell, if that was the kernel or of its tree. Whether it was."""
        life, table = self._life, processes.all_processes()
        if life is None or not any(one == life.pid for one in _ancestry(pid, table)):
            return False
        if pid == life.pid:
            life.note = reason
        else:
            self.heard("stderr", f"agentcube: {reason}\n".encode())
        return True

    # Cells

    async def execute(self, order: Order) -> Execution:
        """Begin a cell, as soon as it is its turn; or find the one that was begun for the same key.

        Raises:
            Problem: `kernel_busy` when that takes longer than the order waits, `kernel_dead`,
                `limit_exceeded` when too many wait already, `idempotency_conflict`.
        """
        if order.key is None:
            return await self._execute(order)
        while True:
            known = self.find_key(order)
            if known is not None:
                return known
            if order.key not in self._ordered:
                break
            digest, decided = self._ordered[order.key]
            _check_digest(order, digest)
            await decided.wait()  # the same call, from somebody who waits in line
        decided = asyncio.Event()
        self._ordered[order.key] = order.digest, decided
        try:
            return await self._execute(order)
        finally:
            del self._ordered[order.key]
            decided.set()

    async def _execute(self, order: Order) -> Execution:
        while self.state == "starting":
            await self.started()
        await self._turn(order.wait_s)
        if self.deleted:
            raise Problem("kernel_not_found", "the kernel was deleted")
        if self.state != "idle" or self._life is None:
            raise Problem("kernel_dead", f"the kernel is dead ({self.reason}); restart it")
        execution = self.current = Execution(self._loop, self._parts.store, order, self._life.count)
        self.executions[execution.id] = execution
        self.state, self._last_active_at = "busy", time.time()
        execution.add(
            "start", members(execution=execution.id, kernel=self.id, execution_count=execution.count)
        )
        life = self._life
        execution.room = lambda: life.release("full")
        execution.abandoned = lambda: self.stop(execution, "interrupted", order.interrupt_grace_s)
        if order.timeout_s is not None:
            self._timer = self._loop.call_later(
                order.timeout_s, self.stop, execution, "timed_out", order.interrupt_grace_s
            )
        life.execute(order.code, silent=order.silent, store_history=order.store_history)
        return execution

    async def _turn(self, wait_s: float) -> None:
        """Wait in line. Raises Problem `kernel_busy` or `limit_exceeded`."""
        if self.current is None and not self._promised and not self._line:
            return
        if wait_s <= 0:
            raise self._busy()
        if len(self._line) >= LINE_MAX:
            raise Problem("limit_exceeded", f"{LINE_MAX} cells are waiting for this kernel already")
        turn = self._loop.create_future()
        self._line.append(turn)
        try:
            await asyncio.wait_for(turn, wait_s)
        except asyncio.TimeoutError:
            if turn in self._line:
                self._line.remove(turn)
            if not turn.done() or turn.cancelled():
                raise self._busy() from None
        except asyncio.CancelledError:
            if turn in self._line:
                self._line.remove(turn)
            elif not turn.cancelled():  # it was its turn just now
                self._promised = False
                self._next()
            raise
        self._promised = False

    def _busy(self) -> Problem:
        return Problem("kernel_busy", "the kernel is executing another cell; wait for it, or interrupt it")

    def _next(self) -> None:
        """Let the first in line have its turn; all of them, where there is none to wait for any more."""
        while self._line and not self._promised:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                self._promised = self.state == "idle"

    def get_execution(self, id: str) -> Execution:
        """The execution of that id. Raises Problem `kernel_not_found`."""
        execution = self.executions.get(id)
        if execution is None:
            raise Problem(
                "kernel_not_found", "there is no such execution here, or it is no longer remembered"
            )
        return execution

    def find_key(self, order: Order) -> Execution | None:
        """The execution of an earlier order with the same idempotency key. Raises `idempotency_conflict`."""
        for execution in self.executions.values():
            if order.key is not None and execution.order.key == order.key:
                _check_digest(order, execution.order.digest)
                return execution
        return None

    # Interrupting

    async def interrupt(self, id: str | None, grace_s: float) -> None:
        """Interrupt the cell that runs (only `id`, if given), and return when it has ended or was killed."""
        execution = self.current
        if execution is not None and (id is None or execution.id == id):
            self.stop(execution, "interrupted", grace_s)
            await execution.done.wait()

    def stop(self, execution: Execution, status: str, grace_s: float) -> None:
        """Interrupt a cell; if it goes on all the same after the grace, kill the kernel."""
        if self.current is not execution or self._life is None:
            return
        first = execution.stopping is None
        execution.stopping = execution.stopping or status
        life = self._life
        if execution.begun:
            life.interrupt()
        life.release("full")  # it may have been held up, and has to say that it was interrupted
        deadline = self._loop.time() + grace_s
        if first or deadline < self._deadline:
            self._deadline = deadline
            if self._overdue is not None:
                self._overdue.cancel()
            why = f"it did not stop within {format_duration(grace_s)} of the interrupt"
            self._overdue = self._loop.call_at(deadline, life.end, why)

    # What the present life says

    def began(self) -> None:
        if self.current is not None and not self.current.begun:
            self.current.begun = True
            if self.current.stopping is not None and self._life is not None:
                self._life.interrupt()

    def heard(self, stream: str, data: bytes) -> None:
        if self.current is not None:
            self.current.output(stream, data)
            self._hold_if_full(self.current)

    def told(self, event: str, inner: str) -> None:
        if self.current is not None:
            self.current.add(event, inner)
            self._hold_if_full(self.current)

    def ended(self, *, ok: bool, interrupted: bool, exit_code: int | None = None) -> None:
        execution = self.current
        if execution is None or self._life is None or self._life.is_dying:
            return  # what ends just when it is killed for not ending has lost its state all the same
        status = "ok" if ok else "error"
        if interrupted and execution.stopping is not None:
            status = execution.stopping
        more = {} if exit_code is None else {"exit_code": exit_code}
        self._finish(execution, status, state_lost=False, **more)
        self.state = "idle"
        self._next()

    def died(self, reason: str) -> None:
        self.state, self.reason = "dead", reason
        execution = self.current
        if execution is not None:
            status = "timed_out" if execution.stopping == "timed_out" else "kernel_died"
            self._finish(execution, status, state_lost=True, reason=reason)
        self._next()

    def _hold_if_full(self, execution: Execution) -> None:
        if execution.full and self._life is not None:
            self._life.hold("full")

    def _finish(self, execution: Execution, status: str, **more: Any) -> None:
        for timer in (self._overdue, self._timer):
            if timer is not None:
                timer.cancel()
        self._overdue = self._timer = None
        self.current = None
        self._last_active_at = time.time()
        if self._life is not None:
            self._count = self._life.count - 1
            self._life.release("full")
        execution.finish(status, **more)
        execution.expiry = self._loop.call_later(EXECUTIONS_S, self._forget, execution)
        ended = [one for one in self.executions.values() if one.status is not None]
        for one in ended[:-EXECUTIONS_MAX]:
            self._forget(one)
        kept = sum(one.size for one in ended)
        for one in ended[:-1]:
            if kept > EXECUTIONS_BYTES_MAX:
                kept -= one.size
                one.drop()

    def _forget(self, execution: Execution) -> None:
        if self.executions.pop(execution.id, None) is not None:
            if execution.expiry is not None:
                execution.expiry.cancel()
            execution.dismiss()

    # Documents

    def document(self, *, measured: bool = False) -> dict[str, Any]:
        """What clients see of it; `measured`: with its memory, which takes as long as starting one."""
        life = self._life
        alive = life is not None and life.pid and not life.gone.is_set()
        found: dict[str, Any] = {
            "id": self.id,
            "language": self.design.language,
            "implementation": "" if life is None else life.implementation,
            "state": self.state,
            "execution": None if self.current is None else self.current.id,
            "execution_count": self._count,
            "pid": life.pid if alive and life is not None else None,
            "created_at": rfc3339(self._created_at),
            "last_active_at": rfc3339(self._last_active_at),
        }
        if self.state == "dead":
            found["reason"] = self.reason
        if measured and alive and life is not None:
            found["memory_bytes"] = processes.share_bytes(life.pid)
        return found


def _check_digest(order: Order, digest: bytes) -> None:
    if order.digest != digest:
        raise Problem("idempotency_conflict", "this Idempotency-Key was used with another body")


def _ancestry(pid: int, table: Mapping[int, processes.Process]) -> Iterator[int]:
    """`pid`, its parent, and so on."""
    while pid in table:
        yield pid
        pid = table[pid].parent
