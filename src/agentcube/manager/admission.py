"""Who may come in: a bound on creations under way, and the gate while starting or stopping.

How many sessions there may be is the store's to hold, with whoever else uses it (`ports.store.Quota`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agentcube.errors import LimitExceeded, Unavailable
from agentcube.manager.settings import ManagerSettings


class Admission:
    """The creations of this process. Pure bookkeeping: a refusal leaves nothing behind."""

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        self._creating = 0
        self._gate = asyncio.Event()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether sessions can be made."""
        return self._gate.is_set() and not self._closed

    def open(self) -> None:
        """Let creations in."""
        self._closed = False
        self._gate.set()

    def pause(self) -> None:
        """Let creations wait: what is on record is not known yet."""
        self._gate.clear()
        self._closed = False

    def close(self) -> None:
        """Refuse creations from now on, those that wait too: the manager stops."""
        self._closed = True
        self._gate.set()

    @contextlib.asynccontextmanager
    async def creating(self) -> AsyncIterator[None]:
        """One creation. Waits while the manager starts; raises Unavailable, LimitExceeded."""
        if self._creating >= self._settings.creates_waiting_max:
            raise LimitExceeded(f"{self._creating} sessions are being created already; try again in a moment")
        self._creating += 1
        try:
            try:
                async with asyncio.timeout(self._settings.start_timeout_s):
                    await self._gate.wait()
            except TimeoutError:
                raise Unavailable("the manager is still finding out what it left behind") from None
            if self._closed:
                raise Unavailable("the manager is stopping")
            yield
        finally:
            self._creating -= 1
