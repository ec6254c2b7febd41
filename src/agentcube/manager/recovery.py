"""What a start does before anything else: finds out what became of the sandboxes, and tidies up.

Nothing is destroyed before the whole store was read: a sandbox is unknown only to who knows all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog

from agentcube.errors import AgentCubeError, SessionNotFound, StoreFailed
from agentcube.manager.acts import Acts
from agentcube.manager.pools import Pools
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, SessionId, sandbox_id_for
from agentcube.model.lifecycle import LIVE, Phase
from agentcube.model.plan import Seen
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.session import Session
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import SessionQuery, Store

log = structlog.get_logger(__name__)

_AT_ONCE = 32  # adoptions: each is a round trip into a sandbox
_RETRY_S = 1.0
_PAGE = 1000
T = TypeVar("T")


class Recovery:
    """Adopts, fails, finishes and destroys, once per start."""

    def __init__(
        self,
        settings: ManagerSettings,
        store: Store,
        driver: SandboxDriver,
        acts: Acts,
        reconciler: Reconciler,
        pools: Pools,
    ) -> None:
        self._settings = settings
        self._store = store
        self._driver = driver
        self._acts = acts
        self._reconciler = reconciler
        self._pools = pools
        self._doubtful: dict[SessionId, Session] = {}

    async def run(self) -> list[Session]:
        """Recover, waiting for the store and the driver as long as it takes; the sessions on record then."""
        failing = False
        while True:
            try:
                return await self._recover()
            except AgentCubeError as exc:
                if not failing:
                    log.warning("start waits", error=exc.code, detail=exc.detail)
                failing = True
            await asyncio.sleep(_RETRY_S)

    async def _recover(self) -> list[Session]:
        # The inventory first: what appears later is known to the records that are read after it.
        present = [id for id, _ in await self._driver.inventory()]
        sessions = await all_sessions(self._store)
        warm = await self._store.list_warm()
        known = {id for s in sessions if (id := _sandbox_id(s)) is not None} | {e.id for e in warm}
        await _each((id for id in present if id not in known), self._destroy_orphan)
        await _each(warm, self._recover_warm)
        await _each(sessions, self._recover_session)
        log.info("recovered", sessions=len(sessions), warm=len(warm), sandboxes=len(present))
        return sessions

    async def _destroy_orphan(self, id: SandboxId) -> None:
        log.warning("sandbox without a session destroyed", sandbox=id)
        try:
            await self._driver.destroy(id)
        except AgentCubeError:
            self._pools.doom(id)

    async def _recover_warm(self, entry: WarmSandbox) -> None:
        if entry.state is WarmState.READY and entry.sandbox is not None:
            try:
                if await self._driver.adopt(entry.sandbox) is Seen.ALIVE:
                    return
            except StoreFailed:
                raise
            except AgentCubeError as exc:
                log.info("warm sandbox not adopted", sandbox=entry.id, error=exc.code)
        # Half-made, dead or doubtful: nobody owns it, so it is not worth a doubt.
        # Destroyed before it is forgotten: one that cannot be is left to the pools.
        await self._driver.destroy(entry.id)
        await self._store.remove_warm(entry.id)

    async def _recover_session(self, session: Session) -> None:
        if session.phase is Phase.PENDING:
            # Nobody knows how far its start came; it begins again from nothing.
            await self._driver.destroy(sandbox_id_for(session.id))
        elif session.phase in LIVE and session.sandbox is not None:
            await self._adopt(session)
        if session.phase not in (Phase.READY, Phase.PAUSED) or session.sandbox is None:
            self._reconciler.look(session.id)

    async def _adopt(self, session: Session) -> None:
        assert session.sandbox is not None
        seen = Seen.UNKNOWN
        try:
            seen = await self._driver.adopt(session.sandbox)
        finally:
            if seen is Seen.UNKNOWN:
                self._doubtful[session.id] = session
        if seen is Seen.GONE:
            await self._fail(session)

    async def adopt_doubtful(self) -> None:
        """Adopt the sandboxes that could not be judged at the start, however long that takes."""
        while self._doubtful:
            await asyncio.sleep(_RETRY_S)
            doubtful, self._doubtful = self._doubtful, {}
            await _each(doubtful.values(), self._adopt_again)

    async def _adopt_again(self, session: Session) -> None:
        try:
            now = await self._store.get(session.id)
        except SessionNotFound:
            return
        if now.phase in LIVE and now.sandbox == session.sandbox:
            await self._adopt(now)

    async def _fail(self, session: Session) -> None:
        booted = self._settings.host_started_at
        if booted is not None and session.created_at < booted:
            await self._acts.fail(session.id, "host_restarted", "the machine was restarted")
        else:
            await self._acts.fail(session.id, "sandbox_died", "its sandbox ended while the server was down")
        self._reconciler.look(session.id)


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


def _sandbox_id(session: Session) -> SandboxId | None:
    """The sandbox that is the session's, made or in the making."""
    if session.sandbox is not None:
        return session.sandbox.id
    return sandbox_id_for(session.id) if session.phase in (Phase.PENDING, Phase.DELETING) else None


async def _each(items: Iterable[T], act: Callable[[T], Awaitable[None]]) -> None:
    """Do `act` for every item, some at a time; an item that fails is logged and left to later passes."""
    free = asyncio.Semaphore(_AT_ONCE)

    async def one(item: T) -> None:
        async with free:
            try:
                await act(item)
            except StoreFailed:
                raise
            except AgentCubeError as exc:
                log.warning("not recovered", error=exc.code, detail=exc.detail)

    results = await asyncio.gather(*(one(item) for item in items), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
