"""`/api/execute`: one fresh process per call, its whole tree dead when the call is cut short.

Knows processes and pipes, not HTTP: an outcome is data, a refusal is a `Problem`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from agentcube.durations import format_duration
from agentcube.picod import processes
from agentcube.picod.output import Head, Heads, PipeReader, PipeWriter
from agentcube.picod.problems import Problem
from agentcube.picod.starter import Child, Starter

TIMEOUT_DEFAULT_S = 60.0
TIMEOUT_MAX_S = 24 * 3600.0
OUTPUT_BYTES_MAX = 8 * 1024 * 1024  # kept per stream; what comes after is read and dropped
OUTPUTS_BYTES_MAX = 32 * 1024 * 1024  # of all calls together: PicoD's own memory is bounded, too
RUNS_MAX = 128
LATE_OUTPUT_S = 0.1
"""How long output may come after the program's end, when others still hold its pipes (`>(tee …)`)."""
_DRAINS_MAX = 256  # pipes of background processes that are still being emptied

TIMED_OUT = 124  # as timeout(1)


@dataclass(frozen=True)
class Call:
    """What to execute. `timeout_s` covers the program and its late output."""

    argv: tuple[str, ...]
    timeout_s: float = TIMEOUT_DEFAULT_S
    working_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes | None = None


@dataclass(frozen=True)
class Outcome:
    """How it went. Times are seconds since the epoch; `signal` names what killed the program."""

    stdout: Head
    stderr: Head
    exit_code: int
    signal: str | None
    started_at: float
    duration_s: float


class Run:
    """One call under way. `note` ends up as a line in its stderr (the meter tells why it killed)."""

    def __init__(self, child: Child, started: int) -> None:
        self.child = child
        self.started = started  # ticks, as `processes.Process` has them
        self.note = ""
        self.guard_lost = False
        self.survived = False  # something of its tree could not be killed


class Runner:
    """Executes calls, at most `RUNS_MAX` at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, starter: Starter) -> None:
        self._loop = loop
        self._starter = starter
        self._places = RUNS_MAX
        self._heads = Heads(OUTPUTS_BYTES_MAX)
        self._drains: list[PipeReader] = []
        self._kills: set[asyncio.Task[None]] = set()
        self.runs: dict[int, Run] = {}  # by the guard's pid

    def prepare(self) -> None:
        """Make the next call start sooner."""
        self._starter.prepare()

    async def execute(self, call: Call, env: Mapping[str, str]) -> Outcome:
        """Run to the end, or to the timeout; then everything it started is dead before this returns.

        Cancelled, it kills the tree as well (going on in the background). After a normal end,
        background processes live on. `env` is what `call.env` goes on top of.

        Raises:
            Problem: `limit_exceeded`, `unavailable`, or `invalid` for a working directory that
                cannot be entered.
        """
        if self._places == 0:
            raise Problem("limit_exceeded", f"{RUNS_MAX} commands are running in this sandbox already")
        self._places -= 1
        try:
            return await self._run(call, env)
        finally:
            self._places += 1

    def owner(self, pid: int) -> Run | None:
        """The run below whose guard `pid` is."""
        table = processes.all_processes()
        while pid in table:
            if pid in self.runs:
                return self.runs[pid]
            pid = table[pid].parent
        return None

    async def _run(self, call: Call, env: Mapping[str, str]) -> Outcome:
        program = self._starter.program(call.argv, {**env, **call.env}, call.working_dir)
        started_at, begin, ticks = time.time(), time.monotonic(), processes.ticks_now()
        pipes = _Pipes(self._loop, self._heads, call.stdin)
        try:
            child = self._starter.start(
                program, stdin=pipes.stdin, stdout=pipes.stdout, stderr=pipes.stderr, guarded=True
            )
        except BaseException:
            pipes.close()
            raise
        finally:
            pipes.close_childs_ends()
        run = self.runs[child.pid] = Run(child, ticks)
        try:
            timed_out = await self._wait(run, pipes, call.timeout_s)
        except asyncio.CancelledError:
            self._abandon(run)
            pipes.close()
            raise
        finally:
            if self.runs.get(child.pid) is run:  # its guard may be another run's already
                del self.runs[child.pid]
        self._let_go(pipes)
        _refuse_bad_directory(child, call)
        return _outcome(run, call, pipes, timed_out, started_at, time.monotonic() - begin)

    async def _wait(self, run: Run, pipes: _Pipes, timeout_s: float) -> bool:
        """Wait for the end and the output. Returns whether the time was up."""
        ending = run.child.ending
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ending.done.wait(), timeout_s)
        cut_short = (not ending.done.is_set() or ending.lost) and await self._kill(run)
        pipes.drain()
        if not pipes.ended.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(pipes.ended.wait(), LATE_OUTPUT_S)
        return cut_short and not run.guard_lost

    async def _kill(self, run: Run) -> bool:
        """Kill the run's whole tree. False when the program ended by itself just before."""
        guard, ending = run.child.pid, run.child.ending
        if not run.child.gone:
            processes.send(guard, signal.SIGSTOP)  # it must neither reap nor leave until all are dead
            if processes.is_alive(guard):
                run.survived = not await processes.kill_below(guard)
                if not run.child.gone and processes.is_alive(guard):
                    processes.send(guard, signal.SIGKILL)
                    return True
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ending.done.wait(), processes.KILL_DEADLINE_S)
        if not ending.lost:
            return False
        # The program killed its guard: the tree was handed to us, among the orphans of other runs.
        run.guard_lost = True
        run.survived = not await processes.kill_below(
            os.getpid(), lambda one: one.started >= run.started and not self._starter.watches(one.pid)
        )
        return True

    def _abandon(self, run: Run) -> None:
        if run.child.ending.done.is_set() and not run.child.ending.lost:
            return

        async def kill() -> None:
            await self._kill(run)

        task = self._loop.create_task(kill())
        self._kills.add(task)
        task.add_done_callback(self._kills.discard)

    def _let_go(self, pipes: _Pipes) -> None:
        """Go on emptying pipes that background processes hold: closing them would kill these by SIGPIPE."""
        pipes.stop_input()
        self._drains = [reader for reader in self._drains if reader.open]
        for reader in pipes.readers:
            if reader.open:
                reader.discard()
                self._drains.append(reader)
        for reader in self._drains[:-_DRAINS_MAX]:
            reader.close()


class _Pipes:
    """The three pipes of a run. The child's ends are closed in PicoD right after the start."""

    def __init__(self, loop: asyncio.AbstractEventLoop, heads: Heads, stdin: bytes | None) -> None:
        self.heads = (heads.new(OUTPUT_BYTES_MAX), heads.new(OUTPUT_BYTES_MAX))
        self.ended = asyncio.Event()
        self.stdin: int | None = None
        self._writer: PipeWriter | None = None
        out, self.stdout = os.pipe()
        err, self.stderr = os.pipe()
        if stdin is not None:
            self.stdin, write = os.pipe()
            self._writer = PipeWriter(loop, write, stdin)
        self.readers: tuple[PipeReader, ...] = ()
        self.readers = tuple(
            PipeReader(loop, fd, head.add, self._on_end) for fd, head in zip((out, err), self.heads)
        )

    def _on_end(self) -> None:
        if not any(reader.open for reader in self.readers):
            self.ended.set()

    def close_childs_ends(self) -> None:
        for fd in (self.stdin, self.stdout, self.stderr):
            if fd is not None:
                os.close(fd)

    def drain(self) -> None:
        for reader in self.readers:
            reader.drain()

    def stop_input(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def close(self) -> None:
        self.stop_input()
        for reader in self.readers:
            reader.close()


def _refuse_bad_directory(child: Child, call: Call) -> None:
    failed = child.ending.failed
    if failed is None:
        return
    step, number = failed
    if step == "working_dir":
        raise Problem("invalid", f"working_dir {call.working_dir!r}: {os.strerror(number)}")
    if step != "exec":
        raise Problem("unavailable", child.ending.why_not_started(call.argv[0]))


def _outcome(
    run: Run, call: Call, pipes: _Pipes, timed_out: bool, started_at: float, duration_s: float
) -> Outcome:
    ending = run.child.ending
    stdout, stderr = pipes.heads
    code, number = ending.exit_code(), ending.signal()
    note = ending.why_not_started(call.argv[0]) or run.note
    if timed_out:
        code, number = TIMED_OUT, signal.SIGKILL
        note = f"command timed out after {format_duration(call.timeout_s)}; {_fate(run)}"
    elif run.guard_lost:
        number, note = signal.SIGKILL, f"the command killed its own guard; {_fate(run)}"
    if note:
        stderr.add_line(note)
    return Outcome(stdout, stderr, code, _signal_name(number) if number else None, started_at, duration_s)


def _fate(run: Run) -> str:
    return "some of its processes could not be killed" if run.survived else "all its processes were killed"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"  # only the first and last of these have names
