"""Holds the user to the sandbox's memory where no cgroup does: the largest process dies first."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from typing import Callable

from agentcube.picod import processes

PERIOD_S = 0.25
_REST = 10  # times as long as a look took: no more than a tenth of a processor goes into looking
log = logging.getLogger("picod")


class Meter:
    """Looks four times a second, and only while the user has processes.

    `spares` tells of PicoD's own helpers, which do not count. `killed` hears pid and reason.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        memory_bytes: int,
        spares: Callable[[int], bool],
        killed: Callable[[int, str], None],
    ) -> None:
        self._loop = loop
        self._memory_bytes = memory_bytes
        self._spares = spares
        self._killed = killed
        self._timer: asyncio.TimerHandle | None = None

    def wake(self) -> None:
        """A process was started: look from now on."""
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD_S, self._look)

    def _look(self) -> None:
        self._timer = None
        began = self._loop.time()
        users = [
            process
            for process in processes.descendants(os.getpid(), processes.all_processes())
            if process.alive and not self._spares(process.pid)
        ]
        if not users:
            return
        self._hold(users)
        took_s = self._loop.time() - began
        self._timer = self._loop.call_later(max(PERIOD_S, _REST * took_s), self._look)

    def _hold(self, users: list[processes.Process]) -> None:
        """Kill the largest if they have too much together.

        Forks of one process share most of what they have, kernels with each other and with other
        sandboxes: who seems to have too much is looked at closely.
        """
        total = 0
        for measure in (processes.memory_bytes, processes.share_bytes):
            sizes = [(measure(process.pid), process) for process in users]
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
