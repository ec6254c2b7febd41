"""The deadline loop: wakes when something may be due, has it looked at, and sleeps until the next.

It decides nothing: a session that turns out not to be due is put back into the queue by the look.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

import structlog

from agentcube.errors import AgentCubeError
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.settings import ManagerSettings
from agentcube.ports.clock import Clock
from agentcube.ports.store import SessionStore

log = structlog.get_logger(__name__)

_BATCH = 256
_SHORTEST_S = 1.0  # the precision that is promised; also keeps a deadline that cannot be met from spinning
_LONGEST_S = 10.0  # the wall clock may jump, and other replicas write deadlines too


class Deadlines:
    """Runs beside the reconciler for as long as the manager does."""

    def __init__(
        self, settings: ManagerSettings, store: SessionStore, reconciler: Reconciler, clock: Clock
    ) -> None:
        self._lease = timedelta(seconds=settings.lease_s)
        self._owner = settings.replica
        self._store = store
        self._reconciler = reconciler
        self._clock = clock
        self._earlier = asyncio.Event()
        self._waiting_for: datetime | None = None

    def note(self, due: datetime) -> None:
        """A deadline was written; wakes the loop when it comes before the one that is waited for."""
        if self._waiting_for is None or due < self._waiting_for:
            self._earlier.set()

    async def run(self) -> None:
        """Sweep and sleep until cancelled. While the store is out of reach nothing is due."""
        failing = False
        while True:
            try:
                while await self.sweep():
                    pass
                failing = False
            except AgentCubeError as exc:
                if not failing:
                    log.warning("deadlines wait for the store", error=exc.code, detail=exc.detail)
                failing = True
            await self._sleep()

    async def sweep(self) -> bool:
        """Have everything looked at that is due now; True when there may be more."""
        due = await self._store.lease_due(
            now=self._clock.now(), owner=self._owner, lease=self._lease, limit=_BATCH
        )
        for session in due:
            self._reconciler.look(session.id)
        return len(due) == _BATCH

    async def _sleep(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while True:
            self._earlier.clear()
            until = begun + await self._pause_s()
            try:
                async with asyncio.timeout_at(until):
                    await self._earlier.wait()
            except TimeoutError:
                return

    async def _pause_s(self) -> float:
        try:
            self._waiting_for = await self._store.next_due()
        except AgentCubeError:
            return _SHORTEST_S
        if self._waiting_for is None:
            return _LONGEST_S
        wait = (self._waiting_for - self._clock.now()).total_seconds()
        return min(max(wait, _SHORTEST_S), _LONGEST_S)
