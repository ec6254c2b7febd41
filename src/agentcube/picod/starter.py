"""Starts programs as the user and hears how they end. Shared by calls (`exec`) and the command."""

from __future__ import annotations

import asyncio
import functools
import os
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Callable

from agentcube.picod import spawn
from agentcube.picod.config import Config
from agentcube.picod.guards import Guard, Nursery
from agentcube.picod.problems import Problem
from agentcube.picod.reaper import Reaper

GUARD_IDLE_S = 30.0  # how long a guard waits for a next call; it holds up to 3 MB of its own
WAITING_MAX = 4  # guards that wait, at most
DIRECT_MAX = 4  # guards that PicoD forks itself; beyond, it takes a nursery to do so
_RECORDS = 4  # read at once: more than a program ever has


class Ending:
    """How a program ended, or why it did not start; filled in once, then `done` is set.

    `begun` is set before that, once it is known whether it did start, with the `pid` of what did.
    """

    def __init__(self) -> None:
        self.pid: int | None = None  # the program's own; only told of guarded ones
        self.status: int | None = None  # as waitpid tells
        self.failed: tuple[str, int] | None = None  # step of `spawn.STEPS`, errno
        self.begun = asyncio.Event()
        self.done = asyncio.Event()

    def finish(self) -> None:
        """No more is to come."""
        self.begun.set()
        self.done.set()

    @property
    def lost(self) -> bool:
        """Whether the guard went away without a word."""
        return self.done.is_set() and self.status is None and self.failed is None

    def exit_code(self) -> int:
        """As a shell would say it: 128+n for signal n, 127 and 126 for a program that did not start."""
        if self.failed is not None:
            return 127 if self.failed[1] in (2, 20) else 126  # ENOENT, ENOTDIR
        if self.status is None:
            return 137  # its guard was killed, which only SIGKILL does
        if os.WIFSIGNALED(self.status):
            return 128 + os.WTERMSIG(self.status)
        return os.WEXITSTATUS(self.status)

    def signal(self) -> int | None:
        """The signal that ended it."""
        if self.status is not None and os.WIFSIGNALED(self.status):
            return os.WTERMSIG(self.status)
        return None

    def why_not_started(self, name: str) -> str:
        """One line for people, "" when it did start."""
        if self.failed is None:
            return ""
        step, number = self.failed
        if step == "exec":
            if number == 2 and "/" not in name:
                return f"{name}: command not found"
            return f"{name}: cannot execute: {os.strerror(number)}"
        return f"{name}: cannot start: {os.strerror(number)} (step {step})"


class Child:
    """A started program: its pid (the guard's when guarded) and its ending."""

    def __init__(self, pid: int, ending: Ending) -> None:
        self.pid = pid
        self.ending = ending
        self.gone = False  # reaped: the pid may be somebody else's now


class Starter:
    """Owns what every start needs: who the user is, /dev/null, the reaper.

    `started` is called after each start (the meter wakes up then).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, config: Config, reaper: Reaper) -> None:
        self._loop = loop
        self._reaper = reaper
        self._null = os.open("/dev/null", os.O_RDWR)
        self._workspace = os.fsencode(config.workspace)
        self._identity = _identity(config)
        self.started: Callable[[], None] = lambda: None
        self.guards: set[int] = set()
        self._nursery: Nursery | None = None
        self._waiting: list[Guard] = []  # the one that waited least is taken first

    def program(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        working_dir: str,
        *,
        terminal: str = "",
        inherited: Mapping[int, int] | None = None,
    ) -> spawn.Program:
        """As exec wants it. `working_dir` is relative to the workspace or absolute in the sandbox."""
        return spawn.Program(
            argv=tuple(_encode(item) for item in argv),
            env={_encode(key): _encode(value) for key, value in env.items()},
            working_dir=self.directory(working_dir),
            terminal=_encode(terminal),
            inherited=inherited or {},
        )

    def directory(self, working_dir: str) -> bytes:
        """Where a program starts whose `working_dir` is this: relative to the workspace, or absolute."""
        return os.path.join(self._workspace, _encode(working_dir))

    @property
    def cgroup_fds(self) -> tuple[int, ...]:
        """Open `cgroup.procs` files that every process of the user's moves into."""
        return self._identity.cgroup_fds

    @property
    def rlimits(self) -> tuple[tuple[int, int, int], ...]:
        """Resource limits of every process of the user's: kind, soft, hard."""
        return self._identity.rlimits

    def watches(self, pid: int) -> bool:
        """Whether `pid` is a child that was started here, rather than an orphan."""
        return self._reaper.watches(pid)

    def start(
        self, program: spawn.Program, *, stdin: int | None, stdout: int, stderr: int, guarded: bool
    ) -> Child:
        """Start `program` on these descriptors, which stay the caller's.

        Raises:
            Problem: `unavailable` when the sandbox has no room for another process.
        """
        report, report_w = os.pipe()
        guard: Guard | None = None
        try:
            stdio = (self._null if stdin is None else stdin, stdout, stderr)
            if guarded:
                guard = self._guard(program, stdio, report_w)
            pid = (
                guard.pid if guard else spawn.spawn(program, self._identity, stdio, report_w, guarded=guarded)
            )
        except OSError as exc:
            os.close(report)
            raise Problem("unavailable", f"cannot start another process: {exc.strerror}") from exc
        finally:
            os.close(report_w)
        child = Child(pid, Ending())
        if guarded:
            self.guards.add(pid)
        self._listen(child, report, guard, guarded=guarded)
        self.started()
        return child

    def prepare(self) -> None:
        """Have a guard waiting for the next call. It goes away when none comes for a while."""
        if self._waiting:
            return
        try:
            self._keep(self._new_guard())
        except OSError:
            return  # the call that would have used it forks, and tells

    def _keep(self, guard: Guard) -> None:
        """Let `guard` wait for a program, unless enough do."""
        if len(self._waiting) >= WAITING_MAX:
            guard.dismiss()
            return
        self.guards.add(guard.pid)
        self._waiting.append(guard)
        self._reaper.watch(guard.pid, lambda status: self._forget(guard))
        guard.expiry = self._loop.call_later(GUARD_IDLE_S, self._dismiss, guard)

    def _dismiss(self, guard: Guard) -> None:
        if guard in self._waiting:
            self._waiting.remove(guard)
            guard.dismiss()

    def _forget(self, guard: Guard) -> None:
        self.guards.discard(guard.pid)
        self._dismiss(guard)

    def _guard(self, program: spawn.Program, stdio: tuple[int, int, int], report: int) -> Guard | None:
        """A guard that has taken the program; None when it is too long to hand over. Raises OSError."""
        while self._waiting:
            guard = self._waiting.pop()
            if guard.expiry is not None:
                guard.expiry.cancel()
            if guard.launch(program, stdio, report):
                return guard
            guard.dismiss()
        guard = self._new_guard()
        if guard.launch(program, stdio, report):
            return guard
        guard.dismiss()
        return None

    def _new_guard(self) -> Guard:
        """Raises OSError."""
        if len(self.guards) < DIRECT_MAX:
            return Guard(self._identity, None)
        if self._nursery is None:
            self._nursery = Nursery(self._identity)
            self.guards.add(self._nursery.pid)
            self._reaper.watch(self._nursery.pid, functools.partial(self._nursery_ended, self._nursery))
        nursery = self._nursery
        try:
            guard = Guard(self._identity, nursery)
        except (ConnectionError, socket.timeout):
            # Killed or stopped by the user, who can where all have one uid.
            if self._reaper.watches(nursery.pid):
                os.kill(nursery.pid, signal.SIGKILL)
            self._dismiss_nursery(nursery)
            return Guard(self._identity, None)
        if nursery.expiry is not None:
            nursery.expiry.cancel()
        nursery.expiry = self._loop.call_later(GUARD_IDLE_S, self._dismiss_nursery, nursery)
        return guard

    def _dismiss_nursery(self, nursery: Nursery) -> None:
        nursery.dismiss()
        if self._nursery is nursery:
            self._nursery = None

    def _nursery_ended(self, nursery: Nursery, status: int) -> None:
        self.guards.discard(nursery.pid)
        self._dismiss_nursery(nursery)

    def _listen(self, child: Child, report: int, guard: Guard | None, *, guarded: bool) -> None:
        """Fill in the ending: from the guard's record, or else from the child's own status."""
        ending = child.ending
        os.set_blocking(report, False)
        listening = True

        def on_report() -> None:
            nonlocal listening
            try:
                records = os.read(report, _RECORDS * spawn.RECORD.size)
            except BlockingIOError:
                return
            for kind, first, second in spawn.RECORD.iter_unpack(records):
                if kind == spawn.FAILED:
                    ending.failed = (spawn.STEPS[first], second)
                elif kind == spawn.STARTED:
                    ending.pid = first
                    ending.begun.set()
                elif kind == spawn.EXITED:
                    ending.status = first
                    ending.finish()
                    if guard is not None and second:
                        self._keep(guard)
            if records:
                return
            listening = False
            self._loop.remove_reader(report)
            os.close(report)
            if guarded or ending.failed is not None:
                ending.finish()

        def on_exit(status: int) -> None:
            child.gone = True
            if guard is not None:
                guard.dismiss()
            self.guards.discard(child.pid)
            if not guarded:
                if listening:
                    on_report()  # why it did not start comes before how it ended
                ending.status = status
                ending.finish()

        self._loop.add_reader(report, on_report)
        self._reaper.watch(child.pid, on_exit)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _identity(config: Config) -> spawn.Identity:
    """Call before PicoD raises limits of its own: the user keeps those PicoD was started with."""
    rlimits = [(resource.RLIMIT_CORE, 0, 0)]
    rlimits.append((resource.RLIMIT_NOFILE, *resource.getrlimit(resource.RLIMIT_NOFILE)))
    limits = config.limits
    if limits.mode == "rlimit":
        if limits.pids_max:
            rlimits.append((resource.RLIMIT_NPROC, limits.pids_max, limits.pids_max))
        if limits.memory_bytes:
            # Private writable memory of one process (Linux 4.7). Not RLIMIT_AS: runtimes such as
            # V8 and Go reserve many gigabytes of addresses that they never use.
            rlimits.append((resource.RLIMIT_DATA, limits.memory_bytes, limits.memory_bytes))
    return spawn.Identity(
        ids=None if config.single_uid or os.geteuid() != 0 else (config.uid, config.gid),
        cgroup_fds=config.cgroup_fds,
        rlimits=tuple(rlimits),
        reset_oom_score=_oom_score() < 0,  # not when PicoD goes early itself: programs may go with it
    )


def _oom_score() -> int:
    try:
        with open("/proc/self/oom_score_adj", "rb") as file:
            return int(file.read())
    except OSError:
        return 0
