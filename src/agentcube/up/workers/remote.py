"""The worker's end: the session table and the control plane of the main process, as the Router wants them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any

from agentcube.errors import StoreFailed, Unavailable
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.ports.tokens import Subject
from agentcube.stores.codec import session_from_text
from agentcube.stores.feed import Feed
from agentcube.up.workers.link import Link, LinkLost, error_of

_GET_S = 10.0
_CALL_S = 180.0  # above what the Router waits for a session


class Remote:
    """Implements `ports.store.SessionTable` and `ports.control.ControlPlane` over `link`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._table: dict[SessionId, Session] = {}
        self._feed = Feed()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._ids = itertools.count(1)
        self.known = asyncio.Event()  # the whole table has come
        self.draining = asyncio.Event()

    async def run(self) -> None:
        """Follow the main process; returns when it is gone."""
        try:
            while True:
                self._hear(await self._link.receive())
        except LinkLost:
            pass
        finally:
            self._link.close()
            for future in self._asked.values():
                if not future.done():
                    future.set_exception(Unavailable("the Workload Manager is gone"))

    def say_ready(self) -> None:
        """Tell the main process that we serve."""
        self._link.send({"ready": True})

    def _hear(self, message: Mapping[str, Any]) -> None:
        if "session" in message:
            self._keep(session_from_text(message["session"], name="session"))
        elif "gone" in message:
            id = SessionId(message["gone"])
            self._table.pop(id, None)
            self._feed.publish([id])
        elif "known" in message:
            known = set(message["known"])
            for id in [id for id in self._table if id not in known]:
                del self._table[id]
                self._feed.publish([id])
            self.known.set()
        elif "drain" in message:
            self.draining.set()
        else:
            future = self._asked.pop(message["id"], None)
            if future is not None and not future.done():
                if "error" in message:
                    future.set_exception(error_of(message))
                else:
                    future.set_result(message["value"])

    def _keep(self, session: Session) -> Session:
        """Put what is not older than what is there; returns what is there then."""
        there = self._table.get(session.id)
        if there is None or session.revision >= there.revision:
            self._table[session.id] = session
            self._feed.publish([session.id])
            return session
        return there

    async def _ask(self, call: str, timeout_s: float, **arguments: Any) -> Any:
        id = next(self._ids)
        future = self._asked[id] = asyncio.get_running_loop().create_future()
        try:
            self._link.send({"id": id, "call": call, **arguments})
            async with asyncio.timeout(timeout_s):
                return await future
        except LinkLost:
            raise Unavailable("the Workload Manager is gone") from None
        except TimeoutError:
            self._take_back(id)
            raise StoreFailed("the main process does not answer in time", call=call) from None
        except asyncio.CancelledError:
            self._take_back(id)
            raise
        finally:
            self._asked.pop(id, None)

    def _take_back(self, id: int) -> None:
        try:
            self._link.send({"cancel": id})
        except LinkLost:
            pass

    async def _session(self, call: str, timeout_s: float, **arguments: Any) -> Session:
        return self._keep(session_from_text(await self._ask(call, timeout_s, **arguments), name="session"))

    # The session table.

    def peek(self, id: SessionId) -> Session | None:
        return self._table.get(id)

    async def get(self, id: SessionId) -> Session:
        return await self._session("get", _GET_S, session=id)

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        await self._ask("touch", _GET_S, activity=list(activity))

    def changes(self) -> AsyncIterator[SessionId | None]:
        return self._feed.subscribe()

    async def check(self) -> None:
        """Return when the main process could make sessions."""
        await self._ask("check", _GET_S)

    # The control plane.

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        asker = {"subject": subject.name, "admin": subject.admin}
        return await self._session("create", _CALL_S, template=list(template), key=key, **asker)

    async def wake(self, id: SessionId) -> Session:
        return await self._session("wake", _CALL_S, session=id)

    async def suspect(self, id: SessionId) -> Session:
        return await self._session("suspect", _CALL_S, session=id)
