"""The one place that waits for children. As process 1 PicoD inherits every orphan of its sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

_STRAYS_MAX = 1024


class Reaper:
    """Reaps every child, and tells whoever watches one of them how it ended.

    Nothing else in the process may wait: two waiters steal each other's exit codes. Children are
    started and watched in one step of the event loop, so none ends unseen in between; or they are
    somebody else's fork, and whoever is told of it later is `expecting` meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: dict[int, Callable[[int], None]] = {}
        self._expected = 0
        self._strays: dict[int, int] = {}  # how those ended that nobody watched, while somebody expects one
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call `ended` with the wait status of the child `pid`, once."""
        if pid in self._strays:
            self._loop.call_soon(ended, self._strays.pop(pid))
        else:
            self._watched[pid] = ended

    def watches(self, pid: int) -> bool:
        """Whether somebody watches `pid`."""
        return pid in self._watched

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Within it, `watch` may come after the end of a child."""
        self._expected += 1
        try:
            yield
        finally:
            self._expected -= 1
            if not self._expected:
                self._strays.clear()

    def has_reaped(self, pid: int) -> bool:
        """Whether a child `pid` that nobody watched has ended while somebody is `expecting`."""
        return pid in self._strays

    def reap(self) -> None:
        """Reap all that has ended. One SIGCHLD may stand for many children (signal(7))."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            ended = self._watched.pop(pid, None)
            if ended is not None:
                ended(status)
            elif self._expected and len(self._strays) < _STRAYS_MAX:
                self._strays[pid] = status
