"""The main process's end: answers a worker's calls and tells it of every session that changes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog

from agentcube.errors import AgentCubeError, LimitExceeded, SessionNotFound, StoreFailed
from agentcube.model.ids import SessionId
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.clock import Clock
from agentcube.ports.control import ControlPlane
from agentcube.ports.store import SessionQuery, SessionStore
from agentcube.ports.tokens import Subject
from agentcube.stores.codec import session_to_text
from agentcube.up.workers.link import Link, LinkLost, error_message

log = structlog.get_logger(__name__)

CALLS_MAX = 4096
"""Calls of one worker at a time; its Router lets a quarter of that wait for sessions."""

_PAGE = 1000

Check = Callable[[], Awaitable[None]]


class Answering:
    """Serves one worker over `link`, from `run` until the link is lost."""

    def __init__(
        self, link: Link, store: SessionStore, control: ControlPlane, check: Check, clock: Clock
    ) -> None:
        self._link, self._store, self._control, self._check = link, store, control, check
        self._clock = clock
        self._calls: dict[int, asyncio.Task[None]] = {}
        self.ready = asyncio.Event()  # the worker serves

    async def run(self) -> None:
        """Returns when the worker is gone."""
        try:
            async with asyncio.TaskGroup() as group:
                telling = group.create_task(self._tell())
                await self._answer()
                telling.cancel()
        except* LinkLost:
            pass
        finally:
            for task in list(self._calls.values()):
                task.cancel()
            await asyncio.gather(*self._calls.values(), return_exceptions=True)
            self._link.close()

    def drain(self) -> None:
        """Ask the worker to let what is under way end, and then to end itself."""
        try:
            self._link.send({"drain": True})
        except LinkLost:
            pass

    async def _answer(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                message = await self._link.receive()
            except LinkLost:
                return
            if "cancel" in message:
                if task := self._calls.get(message["cancel"]):
                    task.cancel()
            elif "ready" in message:
                self.ready.set()
            else:
                id = message["id"]
                self._calls[id] = loop.create_task(self._call(id, message), name=f"call {message['call']}")

    async def _call(self, id: int, message: Mapping[str, Any]) -> None:
        try:
            if len(self._calls) > CALLS_MAX:
                raise LimitExceeded("too many calls of one Router are under way", limit=CALLS_MAX)
            answer: Mapping[str, Any] = {"id": id, "value": await self._do(message)}
        except AgentCubeError as error:
            answer = error_message(id, error)
        except Exception:
            log.exception("a router worker's call failed", call=message.get("call"))
            answer = error_message(id, AgentCubeError("the Workload Manager failed; its log says why"))
        finally:
            self._calls.pop(id, None)
        try:
            self._link.send(answer)
        except LinkLost:
            pass  # `run` notices

    async def _do(self, message: Mapping[str, Any]) -> Any:
        match message["call"]:
            case "get":
                id = SessionId(message["session"])
                return session_to_text(self._store.peek(id) or await self._store.get(id))
            case "wake":
                return session_to_text(await self._control.wake(SessionId(message["session"])))
            case "suspect":
                return session_to_text(await self._control.suspect(SessionId(message["session"])))
            case "create":
                kind, namespace, name = message["template"]
                subject = Subject(message["subject"], admin=message["admin"])
                template = TemplateKey(Kind(kind), namespace, name)
                made = await self._control.create_for(template, subject, key=message["key"])
                return session_to_text(made)
            case "touch":
                # A worker tells as soon as it notes; the store's clock may be another than this machine's.
                ids = map(SessionId, message["activity"])
                await self._store.touch(dict.fromkeys(ids, self._clock.now()))
                return None
            case "check":
                await self._check()
                return None
        raise AgentCubeError(f"no such call: {message['call']}")

    async def _tell(self) -> None:
        changes = self._store.changes()  # subscribed before the table is read: nothing falls between
        news: SessionId | None = None
        while True:
            try:
                await (self._tell_all() if news is None else self._tell_one(news))
            except StoreFailed as exc:
                # A store that is lost, or a record that is damaged. The worker may not go on with what was true
                # before: it forgets, and asks us, who know as much as may be known.
                self._link.send({"known": []} if news is None else {"gone": news})
                log.warning("router worker not told of changes", error=exc.code, detail=exc.detail)
            await self._link.flush()
            try:
                news = await anext(changes)
            except StopAsyncIteration:
                return

    async def _tell_one(self, id: SessionId) -> None:
        session = self._store.peek(id)
        if session is None:
            try:
                session = await self._store.get(id)
            except SessionNotFound:
                self._link.send({"gone": id})
                return
        self._link.send({"session": session_to_text(session)})

    async def _tell_all(self) -> None:
        ids: list[SessionId] = []
        cursor: str | None = None
        while True:
            page = await self._store.list(SessionQuery(limit=_PAGE, cursor=cursor))
            for session in page.sessions:
                ids.append(session.id)
                self._link.send({"session": session_to_text(session)})
            await self._link.flush()
            cursor = page.cursor
            if cursor is None:
                break
        self._link.send({"known": ids})
