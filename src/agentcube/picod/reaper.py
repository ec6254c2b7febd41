"""The one place that waits for children. As process 1 PicoD inherits every orphan of its sandbox."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Callable


class Reaper:
    """Reaps every child, and tells whoever watches one of them how it ended.

    Nothing else in the process may wait: two waiters steal each other's exit codes. Children are
    started and watched in one step of the event loop, so none ends unseen in between.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watched: dict[int, Callable[[int], None]] = {}
        loop.add_signal_handler(signal.SIGCHLD, self.reap)

    def watch(self, pid: int, ended: Callable[[int], None]) -> None:
        """Call `ended` with the wait status of the child `pid`, once."""
        self._watched[pid] = ended

    def watches(self, pid: int) -> bool:
        """Whether somebody watches `pid`."""
        return pid in self._watched

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
