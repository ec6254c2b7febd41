"""Which sessions were active, written to the store once a second instead of once a request."""

from __future__ import annotations

import asyncio

import structlog

from agentcube.errors import AgentCubeError
from agentcube.model.ids import SessionId
from agentcube.ports.clock import Clock
from agentcube.ports.store import SessionTable

log = structlog.get_logger(__name__)


class Activity:
    """The sessions with activity since the last flush."""

    __slots__ = ("_clock", "_store", "note", "seen")

    def __init__(self, store: SessionTable, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.seen: set[SessionId] = set()
        self.note = self.seen.add  # called with a session id whenever its bytes flow

    async def flush(self) -> None:
        """Write what was noted. What a failing store did not take is tried again next time."""
        if not self.seen:
            return
        noted = list(self.seen)
        self.seen.clear()
        now = self._clock.now()
        try:
            await self._store.touch(dict.fromkeys(noted, now))
        except AgentCubeError as error:
            self.seen.update(noted)
            log.warning("activity not stored", sessions=len(noted), error=error.code)

    async def run(self, interval_s: float) -> None:
        """Flush for ever."""
        while True:
            await asyncio.sleep(interval_s)
            await self.flush()
