"""Holds the user to the sandbox's memory where no cgroup does: the largest process dies first."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Callable

from agentcube.picod import processes

PERIOD_S = 0.25
log = logging.getLogger("picod")


class Meter:
    """Looks four times a second, and only while the user has processes.

    `guards` are PicoD's own helpers, which do not count. `killed` hears pid, name and reason.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        memory_bytes: int,
        guards: set[int],
        killed: Callable[[int, str], None],
    ) -> None:
        self._loop = loop
        self._memory_bytes = memory_bytes
        self._guards = guards
        self._killed = killed
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """A process was started: look from now on."""
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD_S, self._look)

    def _look(self) -> None:
        self._timer = None
        users = [
            process
            for process in processes.descendants(os.getpid(), processes.all_processes())
            if process.alive and process.pid not in self._guards
        ]
        if not users:
            return
        self.wake()
        sizes = [(processes.memory_bytes(process.pid), process) for process in users]
        total = sum(size for size, _ in sizes)
        if total <= self._memory_bytes:
            return
        size, largest = max(sizes, key=lambda pair: pair[0])
        processes.send(largest.pid, signal.SIGKILL)
        reason = (
            f"over the sandbox's memory limit ({total >> 20} of {self._memory_bytes >> 20} MiB): "
            f"killed the largest process, {largest.name!r} (pid {largest.pid}, {size >> 20} MiB)"
        )
        log.warning("%s", reason)
        self._killed(largest.pid, reason)
