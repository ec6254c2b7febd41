"""The process table as /proc shows it, and the certain death of a whole tree. No asyncio objects kept."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Container
from dataclasses import dataclass
from typing import Callable

KILL_DEADLINE_S = 5.0
_QUIET_ROUNDS = 2  # looks that find nothing alive and nothing new, before a tree counts as dead


@dataclass(frozen=True)
class Process:
    """One process. `alive` is false for a zombie: it runs no code and waits to be reaped."""

    pid: int
    parent: int
    group: int
    alive: bool
    started: int  # ticks since boot
    name: str


Chooser = Callable[[Process], bool]


def _every(_: Process) -> bool:
    return True


def read_process(pid: int) -> Process | None:
    """What /proc says of `pid`; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    # The name stands in parentheses and may itself hold any byte, `)` included (proc(5)).
    name = text[text.index(b"(") + 1 : text.rindex(b")")].decode("utf-8", "replace")
    fields = text[text.rindex(b")") + 2 :].split()
    # A leader that ended before its threads shows as Z too; only num_threads (field 20) tells.
    alive = fields[0] not in (b"Z", b"X") or int(fields[17]) > 1
    return Process(pid, int(fields[1]), int(fields[2]), alive, int(fields[19]), name)


def is_alive(pid: int) -> bool:
    """Whether `pid` exists and is no zombie."""
    process = read_process(pid)
    return process is not None and process.alive


def all_processes(
    seen: Callable[[Process], None] = lambda process: None, skip: Container[int] = ()
) -> dict[int, Process]:
    """Every process this /proc shows but `skip`, by pid, newest first; `seen` hears of each at once."""
    found = {}
    for pid in sorted((int(entry) for entry in os.listdir("/proc") if entry.isdigit()), reverse=True):
        process = None if pid in skip else read_process(pid)
        if process is not None:
            seen(process)
            found[pid] = process
    return found


def descendants(root: int, table: dict[int, Process], chosen: Chooser = _every) -> list[Process]:
    """All that descend from `root` in `table`, zombies included, `root` itself not.

    Of the direct children only those that `chosen` says, with all that is below them.
    """
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found = [child for child in children.get(root, ()) if chosen(child)]
    for process in found:  # which grows meanwhile
        found.extend(children.get(process.pid, ()))
    return found


def memory_bytes(pid: int) -> int:
    """Resident memory of `pid` that no file backs (shared memory included); 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"RssAnon:", b"RssShmem:")))


def share_bytes(pid: int) -> int:
    """As `memory_bytes`, with what is shared divided among those that share it; 0 when it is gone.

    Slow (milliseconds for a large process). A process that hides from its own user is taken whole.
    """
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            lines = file.read().split(b"\n")
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return memory_bytes(pid)
    return sum(
        int(line.split()[1]) * 1024 for line in lines if line.startswith((b"Pss_Anon:", b"Pss_Shmem:"))
    )


def send(pid: int, number: int) -> None:
    """Send a signal; a process that is already gone is fine."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def dies_of(pid: int, number: int) -> bool:
    """Whether `pid` neither handles, ignores nor blocks that signal; false when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return False
    masks = [
        int(line.split()[1], 16) for line in lines if line.startswith((b"SigBlk:", b"SigIgn:", b"SigCgt:"))
    ]
    return not any(mask >> (number - 1) & 1 for mask in masks)


def ticks_now() -> int:
    """The time as `Process.started` counts it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


async def kill_below(root: int, chosen: Chooser = _every, *, within_s: float = KILL_DEADLINE_S) -> bool:
    """Kill all that `descendants(root, …, chosen)` finds, until there is certainly nothing left.

    Everything found is stopped before anything is killed: a stopped process cannot fork (fork fails
    with a pending signal before the child becomes visible). A chain of processes that fork and exit
    can be read as dead only; but what dies stays a zombie below a root that does not reap (stop a
    guard first), so that the chain shows as new zombies in every round, and runs dry at the limit
    of processes. Newest pids are read first, and stopped at once: that is where a chain's living
    end is. Where pids are few, one that was the family's may be somebody else's by then, whose
    children are stopped for ours: whoever was stopped and not killed goes on in the end. Returns
    whether all are dead in time; yields to the event loop between rounds.
    """
    stopped: set[int] = set()
    killed: set[int] = set()
    try:
        return await _kill_below(root, chosen, time.monotonic() + within_s, stopped, killed)
    finally:
        for pid in stopped - killed:
            send(pid, signal.SIGCONT)


async def _kill_below(
    root: int, chosen: Chooser, deadline: float, stopped: set[int], killed: set[int]
) -> bool:
    family = {root}
    dead: set[int] = set()  # zombies stay what they are: not read again, however many there come to be
    quiet = 0

    def stop_now(process: Process) -> None:
        ours = chosen(process) if process.parent == root else process.parent in family
        if ours and process.alive and process.pid not in stopped:
            send(process.pid, signal.SIGSTOP)
            stopped.add(process.pid)

    while True:
        known = len(stopped)
        members = descendants(root, all_processes(stop_now, dead), chosen)
        family.update(process.pid for process in members)
        for process in members:
            stop_now(process)
        alive = [process.pid for process in members if process.alive]
        dead.update(process.pid for process in members if not process.alive)
        quiet = 0 if members else quiet + 1
        if quiet == _QUIET_ROUNDS:
            return True
        late = time.monotonic() > deadline
        if late or len(stopped) == known:
            for pid in alive:
                send(pid, signal.SIGKILL)
                killed.add(pid)
        if late:
            return False
        await asyncio.sleep(0)
