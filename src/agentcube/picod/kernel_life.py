"""One process of a kernel, from its start to its end: what all kinds have in common.

The process leads a session of its own and is a child of PicoD's. All that descends from it carries a
mark, a resource limit without meaning (RLIMIT_LOCKS, which Linux does not enforce since 2.4): so that
daemons, which leave their parents and sessions, can be found and killed with it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Callable, Protocol

from agentcube.picod import processes
from agentcube.picod.kernel_forks import Forks
from agentcube.picod.kernel_intake import Intake
from agentcube.picod.kernel_run import Store
from agentcube.picod.problems import Problem
from agentcube.picod.starter import Child, Starter
from agentcube.picod.trees import Trees, signal_name

START_S = 60.0  # an interpreter that imports IPython from a cold disk, on a busy machine
RLIMIT_LOCKS = 10
_FIRST_MARK = 1 << 40
ENDING_S = 5.0  # a process with gigabytes takes a while to end
_WORDS_BYTES = 2048  # of what it says before it is ready: why it does not start
_marks = itertools.count(_FIRST_MARK)

_SIGNALS = {
    signal.SIGSEGV: "a segmentation fault",
    signal.SIGBUS: "a bus error",
    signal.SIGABRT: "abort()",
    signal.SIGILL: "an illegal instruction",
    signal.SIGFPE: "an arithmetic error",
    signal.SIGSYS: "a system call that is not allowed",
}


@dataclass(frozen=True)
class Parts:
    """What lives are made with. `oom_kills` counts the user's processes that died for want of memory."""

    loop: asyncio.AbstractEventLoop
    starter: Starter
    trees: Trees
    forks: Forks
    store: Store
    oom_kills: Callable[[], int]


@dataclass(frozen=True)
class Place:
    """Where a kernel lives: its environment, and its directory (relative to the workspace, or absolute)."""

    env: dict[str, str]
    working_dir: str


class Owner(Protocol):
    """Who hears of a life."""

    def began(self) -> None:
        """From now on an interrupt meets the cell."""
        ...

    def heard(self, stream: str, data: bytes) -> None:
        """Something was written on `stdout` or `stderr`."""
        ...

    def told(self, event: str, inner: str) -> None:
        """The cell has published an event, whose members are JSON without braces."""
        ...

    def ended(self, *, ok: bool, interrupted: bool, exit_code: int | None = None) -> None:
        """The cell has ended; the kernel lives."""
        ...

    def died(self, reason: str) -> None:
        """The process, which had been ready, is gone. The last call."""
        ...


class Life(ABC):
    """A process under way. `note` is why it was killed, if somebody knows better than its exit status."""

    implementation = ""
    count = 1  # what the next cell is numbered

    def __init__(self, parts: Parts, place: Place, owner: Owner) -> None:
        self._parts = parts
        self._place = place
        self._owner = owner
        self._mark = next(_marks)
        self._intake: Intake | None = None
        self._words = b""
        self._ready: asyncio.Future[None] = parts.loop.create_future()
        self._oom_before = parts.oom_kills()
        self._killing: asyncio.Task[None] | None = None
        self.pid = 0
        self.note = ""
        self.gone = asyncio.Event()

    # Starting

    async def start(self) -> None:
        """Return when it waits for its first cell.

        Raises:
            Problem: `invalid` for a working directory that cannot be entered or an image without the
                interpreter, `unavailable` when the sandbox has no room for another process.
        """
        try:
            await self._launch()
            await asyncio.wait_for(self._ready, START_S)
        except asyncio.TimeoutError:
            await self.kill("it was not ready in time")
            raise Problem("unavailable", f"the kernel was not ready within {START_S:.0f} s") from None
        except BaseException:
            await self.kill("it was not wanted any more")
            raise

    @abstractmethod
    async def _launch(self) -> None:
        """Start the process, and `_join` it."""

    def _join(self, pid: int, outputs: dict[str, int], report: int, take: Callable[[], bool]) -> None:
        """The process is there: listen to it."""
        self.pid = pid
        self._intake = Intake(self._parts.loop, outputs, report, self._heard, take)

    def _follow(self, child: Child) -> None:
        """A program was started by PicoD itself: hear how it ends."""
        self._parts.trees.in_background(self._await_end(child))

    async def _await_end(self, child: Child) -> None:
        ending = child.ending
        await ending.done.wait()
        if ending.failed is not None:
            step, number = ending.failed
            self._fail_to_start(step, number)
        self._exited(ending.status if ending.status is not None else 127 << 8)

    def _fail_to_start(self, step: str, number: int) -> None:
        why = os.strerror(number)
        if step == "working_dir":
            problem = Problem("invalid", f"working_dir {self._place.working_dir!r}: {why}")
        elif step == "exec":
            problem = Problem("invalid", f"the sandbox's image cannot run this kernel: {self.program}: {why}")
        else:
            problem = Problem("unavailable", f"cannot start a kernel: {why} (step {step})")
        self._refuse(problem)

    program = ""  # what is executed, for people

    def _refuse(self, problem: Problem) -> None:
        if not self._ready.done():
            self._ready.set_exception(problem)

    def _is_ready(self, implementation: str) -> None:
        self.implementation = implementation
        if not self._ready.done():
            self._ready.set_result(None)

    def _heard(self, stream: str, data: bytes) -> None:
        if not self._ready.done():
            self._words = (self._words + data)[-_WORDS_BYTES:]
        else:
            self._owner.heard(stream, data)

    # Living

    def execute(self, code: str, *, silent: bool, store_history: bool) -> None:
        """Run a cell; the owner hears of it."""
        self._oom_before = self._parts.oom_kills()
        self._execute(code, silent=silent, store_history=store_history)

    @abstractmethod
    def _execute(self, code: str, *, silent: bool, store_history: bool) -> None:
        """Tell the process to run a cell."""

    def interrupt(self) -> None:
        """SIGINT to the kernel and what it runs in the foreground."""
        if not self.gone.is_set() and self.pid:
            processes.send(-self.pid, signal.SIGINT)

    def hold(self, why: str) -> None:
        """Let it wait where it writes."""
        if self._intake is not None:
            self._intake.hold(why)

    def release(self, why: str) -> None:
        """Let it write again."""
        if self._intake is not None:
            self._intake.release(why)

    # Ending

    async def kill(self, why: str) -> None:
        """Kill it, and everything that descends from it even after its own end. Idempotent.

        Cancelled, it goes on.
        """
        if self.pid:
            if not self.gone.is_set():
                self.note = self.note or why
            if self._killing is None:
                self._killing = self._parts.trees.in_background(self._kill())
            await asyncio.shield(self._killing)

    @property
    def is_dying(self) -> bool:
        """Whether it is being killed."""
        return self._killing is not None

    async def _kill(self) -> None:
        await processes.kill_below(os.getpid(), self._is_ours)
        try:
            await asyncio.wait_for(self.gone.wait(), processes.KILL_DEADLINE_S)
        except asyncio.TimeoutError:
            self._exited(signal.SIGKILL)  # the system cannot end it now; for us it is over

    def end(self, why: str) -> None:
        """As `kill`, without waiting; what has ended by itself has ended."""
        if self.gone.is_set():
            return
        self._parts.trees.in_background(self.kill(why))

    def _end_soon(self, why: str) -> None:
        """It has closed what it reports on: most likely because it ends, and how is told in a moment."""
        self._parts.loop.call_later(ENDING_S, self.end, why)

    def _is_ours(self, process: processes.Process) -> bool:
        if process.pid == self.pid:
            return not self.gone.is_set()
        return not self._parts.starter.watches(process.pid) and _mark_of(process.pid) == self._mark

    def _exited(self, status: int) -> None:
        if self.gone.is_set():
            return
        self.gone.set()
        if self._intake is not None:
            self._intake.finish()
        self._close()
        reason = self.note or self._describe(status)
        if not self._ready.done():
            words = self._words.decode("utf-8", "replace").strip()
            last = f": {words.splitlines()[-1]}" if words else ""
            self._ready.set_exception(Problem("unavailable", f"the kernel did not start; {reason}{last}"))
        elif not self._ready.cancelled() and self._ready.exception() is None:
            self._owner.died(reason)

    @abstractmethod
    def _close(self) -> None:
        """Close what is left."""

    def _describe(self, status: int) -> str:
        if not os.WIFSIGNALED(status):
            return f"it ended with exit code {os.WEXITSTATUS(status)}"
        number = os.WTERMSIG(status)
        if number == signal.SIGKILL and self._parts.oom_kills() > self._oom_before:
            return "it was killed for want of memory: the sandbox's limit was reached"
        known = _SIGNALS.get(number)  # type: ignore[call-overload]  # a plain number is equal to its Signals
        return f"it was killed by {signal_name(number)}" + (f" ({known})" if known else "")


def _mark_of(pid: int) -> int:
    """The mark that a process carries; 0 for none."""
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            for line in file:
                if line.startswith(b"Max file locks"):
                    value = line.split()[4]
                    return int(value) if value.isdigit() else 0
    except OSError:
        pass
    return 0
