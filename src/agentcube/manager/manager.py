"""The Workload Manager put together: use cases in front, loops behind, one store and one driver."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from agentcube.errors import AgentCubeError, Unavailable
from agentcube.manager.acts import Acts
from agentcube.manager.admission import Admission
from agentcube.manager.catalog import Catalog
from agentcube.manager.deadlines import Deadlines
from agentcube.manager.events import Events
from agentcube.manager.exposures import Exposures
from agentcube.manager.keeper import Keeper
from agentcube.manager.orphans import Orphans, all_sessions
from agentcube.manager.pools import PoolReport, Pools
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.records import Records
from agentcube.manager.recovery import Recovery
from agentcube.manager.service import Sessions
from agentcube.manager.settings import ManagerSettings
from agentcube.manager.templates import TemplatePolicy
from agentcube.manager.watch import Watch
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase, Trigger
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.ports.clock import Clock, SystemClock
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import Store
from agentcube.ports.tokens import Signer, Subject

log = structlog.get_logger(__name__)


class Service:
    """What the API and the Router may ask of the manager. Implements `ports.control.ControlPlane`."""

    def __init__(
        self,
        store: Store,
        sessions: Sessions,
        exposures: Exposures,
        events: Events,
        catalog: Catalog,
        pools: Pools,
        admission: Admission,
    ) -> None:
        self.sessions = sessions
        self.exposures = exposures
        self.events = events
        self.catalog = catalog
        self._store = store
        self._pools = pools
        self._admission = admission

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        return await self.sessions.create_for(template, subject, key=key)

    async def wake(self, id: SessionId) -> Session:
        return await self.sessions.wake(id)

    async def suspect(self, id: SessionId) -> Session:
        return await self.sessions.suspect(id)

    async def pools(self) -> list[PoolReport]:
        """The warm pools as they stand."""
        return await self._pools.report()

    async def check(self) -> None:
        """Return when sessions can be made; raises StoreFailed or Unavailable saying what is missing."""
        await self._store.check()
        if not self._admission.is_open:
            raise Unavailable("the manager is starting or stopping")


class Manager:
    """One manager, perhaps of several. `service` answers while `run` runs; `run` may be run again after it
    was cancelled.
    """

    def __init__(
        self,
        settings: ManagerSettings,
        *,
        store: Store,
        driver: SandboxDriver,
        signer: Signer,
        clock: Clock | None = None,
    ) -> None:
        clock = clock or SystemClock()
        self._store = store
        self._driver = driver
        self._admission = Admission(settings)
        self._records = Records(settings, store, clock)
        self._keeper = Keeper(settings, store, self._records.me, clock)
        acts = Acts(settings, self._records, driver, signer, clock)
        self._reconciler = Reconciler(settings, self._records, driver, acts, clock)
        self._pools = Pools(settings, store, driver, signer, clock, self._keeper)
        self._recovery = Recovery(settings, store, driver, acts, self._reconciler, self._pools)
        self._keeper.on_begin = self._pools.wake
        self.deadlines = Deadlines(settings, store, self._records, self._reconciler, clock)
        self.watch = Watch(settings, store, driver, self._reconciler, self._keeper)
        self.orphans = Orphans(settings, store, driver, self._keeper)
        sessions = Sessions(
            settings, self._records, driver, self._reconciler, self._pools, self._admission, clock
        )
        catalog = Catalog(store, self._pools, TemplatePolicy(settings.allow_host_paths))
        events = Events(settings, store, clock)
        acts.on_forgetting = events.note_last
        exposures = Exposures(sessions, self._records, signer, clock)
        self.service = Service(store, sessions, exposures, events, catalog, self._pools, self._admission)
        self._recovered = asyncio.Event()

    async def run(self) -> None:
        """Recover, then keep everything going until cancelled. A loop that dies ends this with its error."""
        self._admission.pause()
        try:
            async with asyncio.TaskGroup() as group:
                powers = await self._driver.capabilities()
                self._records.can_suspend = powers.suspend
                self._records.cannot_suspend = powers.cannot_suspend
                catalog = self.service.catalog
                catalog.policy = replace(catalog.policy, isolation=powers.isolation)
                group.create_task(self.service.events.run(), name="events")
                group.create_task(self._reconciler.run(), name="reconciler")
                await self._reconciler.running.wait()
                await self._recovery.run()
                self._admission.open()
                self._recovered.set()
                group.create_task(self.deadlines.run(), name="deadlines")
                group.create_task(self._pools.run(), name="pools")
                group.create_task(self.watch.run(), name="watch")
                group.create_task(self.orphans.run(), name="orphans")
                group.create_task(self._keeper.run(), name="keeper")
                group.create_task(self._recovery.adopt_doubtful(), name="adoption")
        finally:
            self._recovered.clear()
            self._admission.close()

    async def recovered(self) -> None:
        """Return once the start is over and sessions can be made."""
        await self._recovered.wait()

    def refuse(self) -> None:
        """Make no more sessions and end event streams: the process is about to end. Sessions that live go on."""
        self._admission.close()
        self.service.events.close()

    async def hand_over(self) -> None:
        """Finish what is being done and begin no more, for a clean stop of one of several; call it while `run` runs.

        The others go on with the sessions. What is cut short they take over when the lease is over.
        """
        self.refuse()
        try:
            await self._keeper.leave()
        except AgentCubeError as exc:
            log.warning("keeper's role runs out by itself", error=exc.code)
        await self._reconciler.landed()

    async def clear(self) -> None:
        """End every session and drain every pool, for a clean stop; call it while `run` runs.

        The wish to end is stored for all sessions first, so that a stop cut short is finished by the
        next start.
        """
        self.refuse()
        sessions = await all_sessions(self._store)
        await asyncio.gather(*(self._end(session) for session in sessions))
        await asyncio.gather(self._pools.close(), *(self._settle(session) for session in sessions))

    async def _settle(self, session: Session) -> None:
        try:
            await self._reconciler.settle(session.id, interrupt=True)
        except AgentCubeError as exc:
            log.warning("session ends with the next start", session=session.id, error=exc.code)

    async def _end(self, session: Session) -> None:
        def ending(now: Session) -> Session | None:
            if now.phase in (Phase.DELETING, Phase.DELETED):
                return None
            return now.advanced(Trigger.DELETE, reason="server_stopped")

        try:
            await self._records.change(session.id, ending)
        except AgentCubeError as exc:
            log.warning("session not ended", session=session.id, error=exc.code)
