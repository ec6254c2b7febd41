"""The reconciler: looks at a session and its sandbox, plans, acts, repeats until there is nothing to do.

The only one who acts on sessions' sandboxes. It takes no hints: whoever calls says *look*, not *what*.
One flight per session at a time; the intent of every act is on record before the act, and who acts.
What another manager acts on is waited for, and taken over when that has died.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import assert_never

import structlog

from agentcube.errors import AgentCubeError, SessionNotFound, StaleRevision, Unavailable
from agentcube.manager.acts import Acts
from agentcube.manager.flight import Flight, Interrupted
from agentcube.manager.records import Records
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.plan import (
    Action,
    BeginDelete,
    BeginSuspend,
    Bind,
    Destroy,
    Fail,
    Launch,
    Release,
    Rest,
    Resume,
    Revive,
    Seen,
    Suspend,
    plan,
)
from agentcube.model.session import Session, is_acted_on
from agentcube.ports.clock import Clock
from agentcube.ports.driver import SandboxDriver
from agentcube.runtime.follow import follow

log = structlog.get_logger(__name__)

_STEPS_MAX = 16  # the longest way through the table is about half of that
_NEWS_S = 1.0  # between two looks at what another manager acts on, when word of changes does not come


class Reconciler:
    """Runs flights inside `run`; `settle` and `look` work only while that runs."""

    def __init__(
        self, settings: ManagerSettings, records: Records, driver: SandboxDriver, acts: Acts, clock: Clock
    ) -> None:
        self._renew_s = settings.lease_s / 3
        self._replicated = settings.replicated
        self._records = records
        self._driver = driver
        self._acts = acts
        self._clock = clock
        self._flights: dict[SessionId, Flight] = {}
        self._group: asyncio.TaskGroup | None = None
        self.running = asyncio.Event()
        """Set while sessions can be looked after."""

    @property
    def flights(self) -> int:
        """How many sessions are being looked after at this moment."""
        return len(self._flights)

    async def run(self) -> None:
        """Carry flights until cancelled; then those under way are given up for the next start to finish."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._keep_holds(), name="holds")
            if self._replicated:
                group.create_task(self._hear(), name="news of sessions")
            self.running.set()
            try:
                await asyncio.Event().wait()
            finally:
                self._group = None
                self.running.clear()

    def look(self, id: SessionId, *, interrupt: bool = False) -> Flight:
        """Have the session looked at; returns at once.

        `interrupt` gives up a start that is under way, because what is wanted has changed.
        Raises Unavailable while the manager does not run.
        """
        flight = self._flights.get(id)
        if flight is not None:
            flight.again = True
            if interrupt:
                flight.interrupt()
            return flight
        if self._group is None:
            raise Unavailable("the manager is starting or stopping")
        flight = self._flights[id] = Flight()
        flight.task = self._group.create_task(self._fly(id, flight), name=f"session {id}")
        return flight

    async def settle(self, id: SessionId, *, interrupt: bool = False) -> None:
        """Have the session looked at and wait until there is nothing more to do for it now.

        A caller that is cancelled leaves the flight flying. Raises what ended the flight early
        (StoreFailed and the like); a session that is gone is settled.
        """
        flight = self.look(id, interrupt=interrupt)
        assert flight.task is not None
        await asyncio.wait({flight.task})
        if flight.error is not None:
            raise flight.error
        if flight.task.cancelled():
            raise Unavailable("the manager is stopping")

    def spawn(self, work: Callable[[], Awaitable[None]], *, name: str) -> None:
        """Do `work` beside the flights, for callers who cannot wait; dropped when the manager stops."""
        if self._group is not None:
            self._group.create_task(_guarded(work, name), name=name)

    def flying(self, id: SessionId) -> bool:
        """Whether the session is being looked after now."""
        return id in self._flights

    async def landed(self) -> None:
        """Return when no session is being looked after. Nobody may ask for more meanwhile."""
        while self._flights:
            await asyncio.wait({f.task for f in self._flights.values() if f.task is not None})

    async def _keep_holds(self) -> None:
        """Renew the holds of acts that take long; an act whose session is another's now is given up."""
        assert self._group is not None
        while True:
            await asyncio.sleep(self._renew_s)
            for id, flight in self._flights.items():
                # Side by side: they would run out while one waits for a store that is slow.
                if flight.acting and (flight.renewing is None or flight.renewing.done()):
                    flight.renewing = self._group.create_task(self._renew(id, flight), name=f"hold of {id}")

    async def _renew(self, id: SessionId, flight: Flight) -> None:
        try:
            await self._records.renew(id)
        except (Interrupted, SessionNotFound):
            if self._flights.get(id) is flight:
                flight.interrupt()
        except AgentCubeError as exc:
            log.warning("hold not renewed", session=id, error=exc.code, detail=exc.detail)

    async def _hear(self) -> None:
        """Tell flights that their session changed: what they do may not be wanted any more, or done by another."""
        async for changed in follow(self._records.store):
            heard = list(self._flights) if changed is None else [changed]
            for id in heard:
                flight = self._flights.get(id)
                if flight is None:
                    continue
                flight.news.set()
                if flight.acting and self._group is not None:
                    self._group.create_task(self._renew(id, flight), name=f"hold of {id}")

    async def _fly(self, id: SessionId, flight: Flight) -> None:
        try:
            while True:
                flight.again = False
                await self._pass(id, flight)
                if not flight.again:
                    return
        except SessionNotFound:
            return
        except AgentCubeError as exc:
            log.warning("session not settled", session=id, error=exc.code, detail=exc.detail)
            flight.error = exc
        except Exception:  # a task's top: one session's trouble must not end the others'
            log.exception("session not settled", session=id)
            flight.error = AgentCubeError(f"session {id} could not be looked after")
        finally:
            del self._flights[id]

    async def _pass(self, id: SessionId, flight: Flight) -> None:
        for _ in range(_STEPS_MAX):
            session = await self._free(id, flight)
            seen = await self._look(session)
            action = plan(session, seen, now=self._clock.now(), can_suspend=self._records.can_suspend)
            if isinstance(action, Rest):
                await self._records.rearm(session)
                return
            try:
                if not await self._act(session, action, flight):
                    return
            except (Interrupted, StaleRevision):
                continue
        log.error("session does not come to rest", session=id, steps=_STEPS_MAX)

    async def _free(self, id: SessionId, flight: Flight) -> Session:
        """The session, once no other manager acts on it, or may not be able to any more."""
        while True:
            flight.news.clear()
            session = await self._records.store.get(id)
            if not self._records.is_others(session):
                return session
            try:
                async with asyncio.timeout(_NEWS_S):
                    await flight.news.wait()
            except TimeoutError:
                pass

    async def _act(self, session: Session, action: Action, flight: Flight) -> bool:
        """Take one step; False when the next one has to wait for another pass."""
        if is_acted_on(session) and await self._records.hold(session) is not session:
            return True  # what is to be done may be something else now
        flight.acting = True
        try:
            return await self._do(session, action, flight)
        finally:
            flight.acting = False

    async def _do(self, session: Session, action: Action, flight: Flight) -> bool:
        acts = self._acts
        match action:
            case Launch():
                await acts.launch(session, flight)
            case Bind():
                await acts.bind(session, flight)
            case Suspend():
                await acts.suspend(session, flight)
            case Revive():
                await acts.revive(session, flight)
            case Resume():
                await acts.resume(session, flight)
            case BeginSuspend():
                await acts.begin_suspend(session)
            case BeginDelete(reason):
                await acts.begin_delete(session.id, reason)
            case Fail(reason):
                await acts.fail(session, reason, "its sandbox is no more")
            case Release():
                return await acts.release(session)
            case Destroy():
                return await acts.destroy(session)
            case Rest():
                return False
            case _:
                assert_never(action)
        return True

    async def _look(self, session: Session) -> Seen:
        if session.sandbox is None:
            return Seen.NONE
        if session.phase in (Phase.DELETING, Phase.FAILED):
            return Seen.UNKNOWN  # it is to be destroyed, whatever it is
        try:
            return await self._driver.observe(session.sandbox)
        except AgentCubeError:
            return Seen.UNKNOWN


async def _guarded(work: Callable[[], Awaitable[None]], name: str) -> None:
    try:
        await work()
    except AgentCubeError as exc:
        log.warning("left for the next pass", work=name, error=exc.code, detail=exc.detail)
    except Exception:  # a task's top
        log.exception("left for the next pass", work=name)
