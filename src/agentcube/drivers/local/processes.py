"""Processes by identity: a pid with its start time and boot, and pidfds, so that no stranger is ever hit."""

from __future__ import annotations

import os
import select
import signal
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_START, _PARENT, _RSS_PAGES, _UTIME, _STIME = 19, 1, 21, 11, 12  # after the name; proc_pid_stat(5)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")


@cache
def boot_id() -> str:
    """Names this run of the kernel: pids and start times of another one mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int | None:
    """When `pid` started, in clock ticks since boot; None when there is no such process."""
    fields = _stat(pid)
    return int(fields[_START]) if fields else None


def open_process(pid: int, start: int) -> int | None:
    """A pidfd of the process `pid` that started at `start`; None when that one is no more."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Looked at after opening: the descriptor holds the very process whose start time is read here,
    # unless that is gone already, and then the times differ or there are none.
    if start_ticks(pid) == start and not has_ended(fd):
        return fd
    os.close(fd)
    return None


def has_ended(pidfd: int, within_s: float = 0.0) -> bool:
    """Whether the process has ended (it may still be a zombie), waiting for it up to `within_s`."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(within_s * 1000))


def kill(pidfd: int) -> None:
    """SIGKILL. A process that is gone is no error."""
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass


@dataclass(frozen=True, slots=True)
class TreeUsage:
    """What a process and its descendants use."""

    memory_bytes: int
    cpu_s: float
    pids: int


def tree_usage(root: int) -> TreeUsage:
    """Usage of `root` and its descendants, from /proc: for machines without control groups. Blocks."""
    found: dict[int, list[str]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            found[int(name)] = fields
    children: dict[int, list[int]] = {}
    for pid, fields in found.items():
        children.setdefault(int(fields[_PARENT]), []).append(pid)
    todo, memory, ticks, count = [root], 0, 0, 0
    while todo:
        pid = todo.pop()
        if fields := found.get(pid, []):
            memory += int(fields[_RSS_PAGES]) * _PAGE
            ticks += int(fields[_UTIME]) + int(fields[_STIME])
            count += 1
        todo += children.get(pid, [])
    return TreeUsage(memory_bytes=memory, cpu_s=ticks / _TICKS, pids=count)
