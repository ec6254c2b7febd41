"""The watch: looks at live sandboxes in turn, so that one that died is noticed without any request.

It only asks the driver, cheaply; whatever is not as it should be is given to the reconciler.
"""

from __future__ import annotations

import asyncio

import structlog

from agentcube.errors import AgentCubeError
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.plan import Seen
from agentcube.model.session import Session
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import SessionQuery, SessionStore

log = structlog.get_logger(__name__)

_QUIET = frozenset({Phase.READY, Phase.PAUSED})
_MOVING = frozenset({Phase.PENDING, Phase.RUNNING, Phase.PAUSING, Phase.RESUMING})


class Watch:
    """Runs beside the reconciler; one sweep looks at a bounded number of sessions and goes on from there."""

    def __init__(
        self,
        settings: ManagerSettings,
        store: SessionStore,
        driver: SandboxDriver,
        reconciler: Reconciler,
    ) -> None:
        self._settings = settings
        self._store = store
        self._driver = driver
        self._reconciler = reconciler
        self._cursor: str | None = None
        self._not_before: dict[SessionId, float] = {}

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
        """Look at the next batch of sessions."""
        page = await self._store.list(
            SessionQuery(limit=min(self._settings.observe_batch, 1000), cursor=self._cursor)
        )
        self._cursor = page.cursor
        now = asyncio.get_running_loop().time()
        self._not_before = {id: at for id, at in self._not_before.items() if at > now}
        for session in page.sessions:
            if not self._reconciler.flying(session.id) and await self._is_off(session):
                self._reconciler.look(session.id)

    async def _is_off(self, session: Session) -> bool:
        if session.phase in _QUIET:
            return session.sandbox is None or await self._seen(session) is Seen.GONE
        if session.phase in _MOVING or (session.phase is Phase.FAILED and session.sandbox is not None):
            return self._may_retry(session.id)
        return False

    async def _seen(self, session: Session) -> Seen:
        assert session.sandbox is not None
        try:
            return await self._driver.observe(session.sandbox)
        except AgentCubeError:
            return Seen.UNKNOWN

    def _may_retry(self, id: SessionId) -> bool:
        """A step that nobody takes is taken again, not more often than a lease lasts."""
        if id in self._not_before:
            return False
        self._not_before[id] = asyncio.get_running_loop().time() + self._settings.lease_s
        return True
