"""The deadline loop: has everything looked at that may be due. Every manager runs one; a lease keeps them apart.

It decides nothing: a session that turns out not to be due is put back into the queue by the look.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from agentcube.errors import AgentCubeError
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.records import Records
from agentcube.manager.settings import ManagerSettings
from agentcube.ports.clock import Clock
from agentcube.ports.store import Store

log = structlog.get_logger(__name__)

_BATCH = 256
_EVERY_S = 1.0  # the precision that is promised; one call of the store


class Deadlines:
    """Runs beside the reconciler for as long as the manager does."""

    def __init__(
        self,
        settings: ManagerSettings,
        store: Store,
        records: Records,
        reconciler: Reconciler,
        clock: Clock,
    ) -> None:
        self._lease = timedelta(seconds=settings.lease_s)
        self._owner = records.me
        self._replicated = settings.replicated
        self._store = store
        self._reconciler = reconciler
        self._clock = clock

    async def run(self) -> None:
        """Sweep and sleep until cancelled. While the store is out of reach nothing is due.

        Nor for a lease after that: other managers may not have been able to renew what they hold, either.
        """
        failing = False
        while True:
            try:
                if failing and self._replicated:
                    await self._store.check()
                    await asyncio.sleep(self._lease.total_seconds())
                while await self.sweep():
                    pass
                failing = False
            except AgentCubeError as exc:
                if not failing:
                    log.warning("deadlines wait for the store", error=exc.code, detail=exc.detail)
                failing = True
            await asyncio.sleep(_EVERY_S)

    async def sweep(self) -> bool:
        """Have everything looked at that is due now; True when there may be more."""
        due = await self._store.lease_due(
            now=self._clock.now(), owner=self._owner, lease=self._lease, limit=_BATCH
        )
        for session in due:
            self._reconciler.look(session.id)
        return len(due) == _BATCH
