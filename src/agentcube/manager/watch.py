"""The watch: looks at live sandboxes in turn, so that one that died is noticed without any request.

It only asks the driver, cheaply; whatever is not as it should be is given to the reconciler. What is to be
done, and by whom, the deadline queue knows. Of several managers the keeper watches.
"""

from __future__ import annotations

import asyncio

import structlog

from agentcube.errors import AgentCubeError
from agentcube.manager.keeper import Keeper
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.settings import ManagerSettings
from agentcube.model.lifecycle import Phase
from agentcube.model.plan import Seen
from agentcube.model.session import Session
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import SessionQuery, SessionStore

log = structlog.get_logger(__name__)

_QUIET = frozenset({Phase.READY, Phase.PAUSED})


class Watch:
    """Runs beside the reconciler; one sweep looks at a bounded number of sessions and goes on from there."""

    def __init__(
        self,
        settings: ManagerSettings,
        store: SessionStore,
        driver: SandboxDriver,
        reconciler: Reconciler,
        keeper: Keeper,
    ) -> None:
        self._settings = settings
        self._store = store
        self._driver = driver
        self._reconciler = reconciler
        self._keeper = keeper
        self._cursor: str | None = None

    async def run(self) -> None:
        """Sweep until cancelled."""
        failing = False
        while True:
            await asyncio.sleep(self._settings.observe_s)
            try:
                await self.sweep()
                failing = False
            except AgentCubeError as exc:
                if not failing:
                    log.warning("watch waits for the store", error=exc.code, detail=exc.detail)
                failing = True

    async def sweep(self) -> None:
        """Look at the next batch of sessions, if we keep them."""
        if not self._keeper.keeping:
            return
        page = await self._store.list(
            SessionQuery(limit=min(self._settings.observe_batch, 1000), cursor=self._cursor)
        )
        self._cursor = page.cursor
        for session in page.sessions:
            if not self._reconciler.flying(session.id) and await self._is_off(session):
                self._reconciler.look(session.id)

    async def _is_off(self, session: Session) -> bool:
        if session.phase not in _QUIET:
            return False
        return session.sandbox is None or await self._seen(session) is Seen.GONE

    async def _seen(self, session: Session) -> Seen:
        assert session.sandbox is not None
        try:
            return await self._driver.observe(session.sandbox)
        except AgentCubeError:
            return Seen.UNKNOWN
