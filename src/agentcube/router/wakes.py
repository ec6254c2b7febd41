"""Wakes sessions: one wake for all requests that need it, and for those that a sleep would cut off.

The Router decides nothing about sleep. It says that it holds traffic: whoever sends a session to sleep
may not know yet what was under way, and bytes may come for one that was quiet for long.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

import structlog

from agentcube.errors import AgentCubeError, NotFound, StartTimedOut, WakeFailed
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.ports.control import ControlPlane
from agentcube.ports.store import SessionTable
from agentcube.router.flights import Flights
from agentcube.router.sessions import Entry, Sessions
from agentcube.runtime.follow import follow

log = structlog.get_logger(__name__)

Spawn = Callable[[Coroutine[None, None, None], str], None]

_RETRY_S = 1.0


class Wakes:
    """The wakes under way. `run` watches over sessions whose requests are under way."""

    __slots__ = ("_control", "_flights", "_rousing", "_sessions", "_spawn", "_store", "_timeout_s")

    def __init__(
        self,
        store: SessionTable,
        control: ControlPlane,
        sessions: Sessions,
        *,
        timeout_s: float,
        spawn: Spawn,
    ) -> None:
        self._store = store
        self._control = control
        self._sessions = sessions
        self._timeout_s = timeout_s
        self._spawn = spawn
        self._flights: Flights[Session] = Flights()
        self._rousing: set[SessionId] = set()

    async def wake(self, entry: Entry) -> None:
        """Return when the session is Ready, or has come to an end that `entry` tells.

        Raises WakeFailed, and what the control plane raises; StartTimedOut for one that never started.
        """
        late: AgentCubeError = StartTimedOut("the session was not ready in time")
        if entry.session.sandbox is not None:
            late = WakeFailed("the session did not wake in time; it is kept asleep")
        woken = self._flights.join(entry.id, lambda: self._control.wake(entry.id))
        try:
            async with asyncio.timeout(self._timeout_s):
                session = await woken
        except TimeoutError:
            raise late from None
        self._sessions.renew(entry, session)

    def rouse(self, entry: Entry) -> None:
        """Wake a session for whose sake something is under way already; tried until it is awake."""
        if entry.id not in self._rousing:
            self._rousing.add(entry.id)
            self._spawn(self._rouse(entry), "rouse")

    async def _rouse(self, entry: Entry) -> None:
        try:
            while entry.in_flight and entry.sleeps:
                try:
                    await self.wake(entry)
                except NotFound:
                    return
                except AgentCubeError as error:
                    log.warning("session with traffic not woken", session=entry.id, error=error.code)
                    await asyncio.sleep(_RETRY_S)
                    self._sessions.find(entry.id)
        finally:
            self._rousing.discard(entry.id)

    async def run(self) -> None:
        """Rouse sessions that fall asleep while a request of theirs is waited for, until cancelled."""
        async for id in follow(self._store):
            for entry in self._sessions.in_use(id):
                try:
                    await self._sessions.get(entry.id)
                except AgentCubeError:
                    continue  # gone, or not to be known now: then the next change tells
                if entry.busy and entry.sleeps:
                    self.rouse(entry)

    async def close(self) -> None:
        """End all wakes."""
        await self._flights.cancel()
