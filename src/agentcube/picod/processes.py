"""The process table as /proc shows it, and the certain death of a whole tree. No asyncio objects kept."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import dataclass
from typing import Callable

KILL_DEADLINE_S = 5.0


@dataclass(frozen=True)
class Process:
    """One process. `alive` is false for a zombie: it runs no code and waits to be reaped."""

    pid: int
    parent: int
    alive: bool
    started: int  # ticks since boot
    name: str


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
    return Process(pid, int(fields[1]), alive, int(fields[19]), name)


def is_alive(pid: int) -> bool:
    """Whether `pid` exists and is no zombie."""
    process = read_process(pid)
    return process is not None and process.alive


def all_processes() -> dict[int, Process]:
    """Every process this /proc shows, by pid."""
    found = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            process = read_process(int(entry))
            if process is not None:
                found[process.pid] = process
    return found


def descendants(root: int, table: dict[int, Process]) -> list[Process]:
    """All that descend from `root` in `table`, zombies included, `root` itself not."""
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(), [])
        found.extend(below)
        queue.extend(process.pid for process in below)
    return found


def memory_bytes(pid: int) -> int:
    """Resident memory of `pid` that no file backs (shared memory included); 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith((b"RssAnon:", b"RssShmem:")))


def send(pid: int, number: int) -> None:
    """Send a signal; a process that is already gone is fine."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def ticks_now() -> int:
    """The time as `Process.started` counts it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


async def kill_all(
    find: Callable[[dict[int, Process]], list[Process]], *, within_s: float = KILL_DEADLINE_S
) -> bool:
    """Kill what `find` finds in the process table until it finds nothing alive.

    Everything found is stopped before anything is killed: a stopped process cannot fork (fork fails
    with a pending signal before the child becomes visible), so a round that finds nobody new has
    found all. Below a guard that is itself stopped first, what dies stays a zombie and keeps its
    slot under the process limit, so that a chain of processes that fork and exit runs dry. Returns
    whether all are dead in time; yields to the event loop between rounds.
    """
    deadline = time.monotonic() + within_s
    stopped: set[int] = set()
    while True:
        alive = [process.pid for process in find(all_processes()) if process.alive]
        if not alive:
            return True
        late = time.monotonic() > deadline
        fresh = [pid for pid in alive if pid not in stopped]
        for pid in fresh:
            send(pid, signal.SIGSTOP)
        stopped.update(fresh)
        if late or not fresh:
            for pid in alive:
                send(pid, signal.SIGKILL)
        if late:
            return False
        await asyncio.sleep(0 if fresh else 0.001)
