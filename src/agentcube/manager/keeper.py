"""Which of several managers keeps what one of them is to keep: the pools, the watch, the orphans.

No request needs it: a claim is one step in the store, whoever fills the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog

from agentcube.errors import AgentCubeError
from agentcube.manager.settings import ManagerSettings
from agentcube.ports.clock import Clock
from agentcube.ports.store import RoleStore

log = structlog.get_logger(__name__)

_ROLE = "keeper"


class Keeper:
    """Has the role for a lease that it renews while `run` runs. A manager without others always has it."""

    def __init__(self, settings: ManagerSettings, store: RoleStore, me: str, clock: Clock) -> None:
        self._sole = not settings.replicated
        self._lease = timedelta(seconds=settings.lease_s)
        self._store = store
        self._me = me
        self._clock = clock
        self._until: datetime | None = None
        self._left = False
        self.on_begin: Callable[[], None] = lambda: None
        """Called when the role becomes ours."""

    @property
    def keeping(self) -> bool:
        """Whether it is us, now."""
        return self._sole or (self._until is not None and self._clock.now() < self._until)

    async def run(self) -> None:
        """Have or await the role until cancelled."""
        while not self._sole:
            await self._try()
            await asyncio.sleep(self._lease.total_seconds() / 3)

    async def leave(self) -> None:
        """Let another manager have it at once, and take it no more. Raises StoreFailed."""
        self._left, self._until = True, None
        if not self._sole:
            await self._store.leave_role(_ROLE, owner=self._me)

    async def _try(self) -> None:
        now, before = self._clock.now(), self.keeping
        try:
            if self._left or not await self._store.lease_role(
                _ROLE, owner=self._me, now=now, lease=self._lease
            ):
                self._until = None
            else:
                self._until = now + self._lease
        except AgentCubeError as exc:
            if before:
                log.warning("keeper's role not renewed", error=exc.code, detail=exc.detail)
            return  # what is left of the lease is ours
        if self.keeping is not before:
            log.info("keeper's role", ours=self.keeping)
            if self.keeping:
                self.on_begin()
