"""Guarded programs and all that descends from them: started, watched over, killed whole.

Shared by calls (`exec`) and processes. Knows pids and pipes, not HTTP: a refusal is a `Problem`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from agentcube.picod import processes, spawn
from agentcube.picod.output import PipeReader
from agentcube.picod.problems import Problem
from agentcube.picod.starter import Child, Ending, Starter

RUNNING_MAX = 128
LATE_OUTPUT_S = 0.1
"""How long output may come after the program's end, when others still hold its pipes (`>(tee …)`)."""

TIMED_OUT = 124  # as timeout(1)
_DRAINS_MAX = 256  # pipes of background processes that are still being emptied


class Tree:
    """One program under way with its descendants. `note` is why it was killed, if PicoD knows better."""

    def __init__(self, child: Child, started: int) -> None:
        self.child = child
        self.started = started  # ticks, as `processes.Process` has them
        self.note = ""
        self.guard_lost = False
        self.survived = False  # something of its tree could not be killed

    @property
    def fate(self) -> str:
        """What became of it when it was killed."""
        return (
            "some of its processes could not be killed" if self.survived else "all its processes were killed"
        )


@dataclass(frozen=True)
class Verdict:
    """How a program ended: `signal` names what killed it, `note` is a line for people, or ""."""

    exit_code: int
    signal: str | None
    note: str


def verdict(tree: Tree, name: str) -> Verdict:
    """How the program `name` ended, which is not to be asked before it did."""
    ending = tree.child.ending
    code, number = ending.exit_code(), ending.signal()
    note = ending.why_not_started(name) or tree.note
    if tree.guard_lost:
        number, note = signal.SIGKILL, f"the command killed its own guard; {tree.fate}"
    return Verdict(code, signal_name(number) if number else None, note)


def signal_name(number: int) -> str:
    """`SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"  # only the first and last of these have names


def refuse_bad_start(ending: Ending, name: str, working_dir: str) -> None:
    """Raise the Problem of a program that was never tried; one that cannot be executed has its exit code."""
    if ending.failed is None:
        return
    step, number = ending.failed
    if step == "working_dir":
        raise Problem("invalid", f"working_dir {working_dir!r}: {os.strerror(number)}")
    if step != "exec":
        raise Problem("unavailable", ending.why_not_started(name))


class Trees:
    """All of them, at most `RUNNING_MAX`, and the background work that ends them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, starter: Starter) -> None:
        self._loop = loop
        self._starter = starter
        self._places = RUNNING_MAX
        self._alive: dict[int, Tree] = {}  # by the guard's pid
        self._drains: list[PipeReader] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def take_place(self) -> None:
        """Count one more program, until `give_place`. Raises Problem `limit_exceeded`."""
        if self._places == 0:
            raise Problem("limit_exceeded", f"{RUNNING_MAX} commands are running in this sandbox already")
        self._places -= 1

    def give_place(self) -> None:
        """Count one less."""
        self._places += 1

    def start(self, program: spawn.Program, stdin: int | None, stdout: int, stderr: int) -> Tree:
        """Start a guarded program on these descriptors, which stay the caller's. Raises Problem `unavailable`."""
        ticks = processes.ticks_now()
        child = self._starter.start(program, stdin=stdin, stdout=stdout, stderr=stderr, guarded=True)
        tree = self._alive[child.pid] = Tree(child, ticks)
        return tree

    def forget(self, tree: Tree) -> None:
        """The program has ended, and what it left behind is nobody's."""
        if self._alive.get(tree.child.pid) is tree:  # its guard may be another one's already
            del self._alive[tree.child.pid]

    def owner(self, pid: int) -> Tree | None:
        """The tree that `pid` is of."""
        table = processes.all_processes()
        while pid in table:
            if pid in self._alive:
                return self._alive[pid]
            pid = table[pid].parent
        return None

    async def kill(self, tree: Tree) -> bool:
        """Kill the whole tree. False when the program ended by itself just before."""
        guard, ending = tree.child.pid, tree.child.ending
        if not tree.child.gone:
            processes.send(guard, signal.SIGSTOP)  # it must neither reap nor leave until all are dead
            if processes.is_alive(guard):
                tree.survived = not await processes.kill_below(guard)
                if not tree.child.gone and processes.is_alive(guard):
                    processes.send(guard, signal.SIGKILL)
                    return True
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ending.done.wait(), processes.KILL_DEADLINE_S)
        if not ending.lost:
            return False
        # The program killed its guard: the tree was handed to us, among the orphans of others.
        tree.guard_lost = True
        tree.survived = not await processes.kill_below(
            os.getpid(), lambda one: one.started >= tree.started and not self._starter.watches(one.pid)
        )
        return True

    def let_go(self, readers: Iterable[PipeReader]) -> None:
        """Go on emptying pipes that background processes hold: closing them would kill these by SIGPIPE."""
        self._drains = [reader for reader in self._drains if reader.open]
        for reader in readers:
            if reader.open:
                reader.discard()
                self._drains.append(reader)
        for reader in self._drains[:-_DRAINS_MAX]:
            reader.close()

    def in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` on its own; a bug in it reaches the loop's log."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
