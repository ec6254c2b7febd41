"""Sandboxes that are nobody's: what a manager left that died at the wrong moment, or a store that lost a session.

One that is on no record in two looks in a row is destroyed: intent is on record before a sandbox is made,
and a single look may have come between a record and the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from agentcube.errors import AgentCubeError
from agentcube.manager.keeper import Keeper
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, sandbox_id_for
from agentcube.model.lifecycle import Phase
from agentcube.model.session import Session
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import SessionQuery, Store

log = structlog.get_logger(__name__)

_PAGE = 1000


class Orphans:
    """Looks for them while `run` runs, where this manager is the keeper."""

    def __init__(
        self, settings: ManagerSettings, store: Store, driver: SandboxDriver, keeper: Keeper
    ) -> None:
        self._every_s = settings.orphans_s
        self._store = store
        self._driver = driver
        self._keeper = keeper
        self._seen: frozenset[SandboxId] = frozenset()

    async def run(self) -> None:
        """Sweep and sleep until cancelled."""
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self.sweep()
            except AgentCubeError as exc:
                log.warning("orphans not looked for", error=exc.code, detail=exc.detail)

    async def sweep(self) -> None:
        """Destroy those that the last sweep saw, too. Raises StoreFailed, DriverFailed."""
        if not self._keeper.keeping:
            self._seen = frozenset()
            return
        found = frozenset(await strangers(self._store, self._driver))
        for id in found & self._seen:
            try:
                await self._driver.destroy(id)
            except AgentCubeError as exc:  # it must not keep those behind it
                log.error("sandbox of nobody not destroyed", sandbox=id, error=exc.code, detail=exc.detail)
            else:
                log.warning("sandbox of nobody destroyed", sandbox=id)
        self._seen = found


async def strangers(store: Store, driver: SandboxDriver) -> list[SandboxId]:
    """Sandboxes that exist and are on no record. Raises StoreFailed, DriverFailed."""
    # In this order: what appears later is on a record that is read later, and what is claimed moves from the
    # pool, which is read first, to a session.
    present = [id for id, _ in await driver.inventory()]
    warm = await store.list_warm()
    known = {entry.id for entry in warm} | sandboxes_of(await all_sessions(store))
    return [id for id in present if id not in known]


async def all_sessions(store: Store) -> list[Session]:
    """Every session on record. Raises StoreFailed."""
    sessions: list[Session] = []
    cursor: str | None = None
    while True:
        page = await store.list(SessionQuery(limit=_PAGE, cursor=cursor))
        sessions.extend(page.sessions)
        cursor = page.cursor
        if cursor is None:
            return sessions


def sandboxes_of(sessions: Iterable[Session]) -> set[SandboxId]:
    """The sandboxes that are the sessions', made or in the making."""
    return {id for session in sessions for id in _own(session)}


def _own(session: Session) -> list[SandboxId]:
    if session.sandbox is not None:
        return [session.sandbox.id]
    return started_for(session) if session.phase in (Phase.PENDING, Phase.DELETING) else []


def started_for(session: Session) -> list[SandboxId]:
    """What starts for the session itself may have made, the latest last."""
    return [sandbox_id_for(session.id, attempt) for attempt in range(1, session.attempt + 1)]
