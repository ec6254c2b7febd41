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
from agentcube.manager.orphans import all_sessions, strangers
from agentcube.manager.pools import Pools
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import LIVE, Phase
from agentcube.model.plan import Seen
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.session import Session
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import Store

log = structlog.get_logger(__name__)

_AT_ONCE = 32  # adoptions: each is a round trip into a sandbox
_RETRY_S = 1.0
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

    async def run(self) -> None:
        """Recover, waiting for the store and the driver as long as it takes."""
        failing = False
        while True:
            try:
                await self._recover()
                return
            except AgentCubeError as exc:
                if not failing:
                    log.warning("start waits", error=exc.code, detail=exc.detail)
                failing = True
            await asyncio.sleep(_RETRY_S)

    async def _recover(self) -> None:
        if not self._settings.replicated:  # where others are at work, one look is not enough
            await _each(await strangers(self._store, self._driver), self._destroy_orphan)
        warm = await self._store.list_warm()
        sessions = await all_sessions(self._store)
        await _each(warm, self._recover_warm)
        await _each(sessions, self._recover_session)
        log.info("recovered", sessions=len(sessions), warm=len(warm))

    async def _destroy_orphan(self, id: SandboxId) -> None:
        log.warning("sandbox of nobody destroyed", sandbox=id)
        try:
            await self._driver.destroy(id)
        except AgentCubeError:
            self._pools.doom(id)

    async def _recover_warm(self, entry: WarmSandbox) -> None:
        if entry.state is WarmState.STARTING and self._settings.replicated:
            return  # the keeper knows whether it is being made
        if entry.state is WarmState.READY and entry.sandbox is not None:
            try:
                if await self._driver.adopt(entry.sandbox) is Seen.ALIVE:
                    return
            except StoreFailed:
                raise
            except AgentCubeError as exc:
                log.info("warm sandbox not adopted", sandbox=entry.id, error=exc.code)
        # Half-made, dead or doubtful: nobody owns it, so it is not worth a doubt. Taken out first: what a
        # session has claimed meanwhile is left alone.
        if await self._store.remove_warm(entry.id):
            await self._destroy_orphan(entry.id)

    async def _recover_session(self, session: Session) -> None:
        if session.phase in LIVE and session.sandbox is not None:
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
            try:
                await _each(doubtful.values(), self._adopt_again)
            except AgentCubeError:  # the store's, which others report; all are looked at again
                self._doubtful = doubtful | self._doubtful

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
            await self._acts.fail(session, "host_restarted", "the machine was restarted")
        else:
            await self._acts.fail(session, "sandbox_died", "its sandbox ended while the server was down")
        self._reconciler.look(session.id)


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
