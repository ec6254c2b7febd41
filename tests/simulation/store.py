"""The shared store, simulated: the product's own tables behind links that can be cut, slow or down.

A process has one `SimStore`, as with Redis: one link whose answers and pushes come in one order, and a
table of sessions that the pushes keep true (the product's own `Table`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from random import Random
from typing import Any

from agentcube.errors import AgentCubeError, StoreFailed
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.pool import WarmSandbox
from agentcube.model.session import Session
from agentcube.model.template import Kind, Template, TemplateKey
from agentcube.ports.store import UNBOUNDED, KeyTaken, Page, Quota, Reservation, SessionQuery
from agentcube.stores.feed import Bell, Feed
from agentcube.stores.memory import MemoryStore
from agentcube.stores.redis.table import Table
from agentcube.stores.tables import (
    Change,
    DropSession,
    DropTemplate,
    DropWarm,
    PutSession,
    PutTemplate,
    PutWarm,
)
from tests.simulation.loop import Process, SimLoop

RECONNECT_S = 0.05
PATIENCE_S = 2.0
"""How long reads are tried again while there is no link, as the Redis client does."""
BLIND_S = 20.0
"""How long a table is used without a link."""


_WRITES = frozenset({"insert", "replace", "delete", "claim_warm", "put_warm", "update_warm", "remove_warm"})


class SimTables(MemoryStore):
    """The product's memory store; `on_change` hears of every change before it is made."""

    def __init__(self) -> None:
        super().__init__()
        self.on_change: Callable[[Change], None] = lambda change: None
        self.on_published: Callable[[list[SessionId]], None] = lambda ids: None
        self.on_pools: Callable[[], None] = lambda: None
        self.writer = ""
        """Whose operation is carried out."""
        self.read_at: int | None = None
        """Which revision the writer has seen of what it replaces."""

    @property
    def records(self) -> Any:
        """All of them, to look at."""
        return self._live

    async def replace(self, session: Session, *, relaxed: bool = False) -> Session:
        self.read_at = session.revision
        try:
            return await super().replace(session, relaxed=relaxed)
        finally:
            self.read_at = None

    def _publish(self, changes: Iterable[Change]) -> None:
        changed, pools = [], False
        for change in changes:
            self.on_change(change)
            super()._publish((change,))
            if isinstance(change, PutSession):
                changed.append(change.session.id)
            elif isinstance(change, DropSession):
                changed.append(change.id)
            elif isinstance(change, PutWarm | DropWarm | PutTemplate | DropTemplate):
                pools = True
        if changed:
            self.on_published(changed)
        if pools:
            self.on_pools()


class StoreServer:
    """The process that has the tables. `operations` counts by name what was asked of it."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.process = Process("store")
        self.tables = SimTables()
        self.tables.on_published = self._push
        self.tables.on_pools = self._ring
        self.links: list[SimStore] = []
        self.is_down = False
        self.delay_s = self.usual_delay_s = 0.0003
        self.late = 0.0
        """How many messages are late, by up to `late_s`; those behind them on the same link are, too."""
        self.late_s = 0.0
        self.on_write: Callable[[Process], None] = lambda process: None
        self.operations: dict[str, int] = {}

    def client(self, process: Process) -> SimStore:
        """A new process's store. Its link is up."""
        store = SimStore(self, process)
        self.links.append(store)
        return store

    def arrival(self, not_before: float) -> float:
        """When a message arrives that is sent now on a link whose last one arrives at `not_before`."""
        random = self.random.random
        delay = self.delay_s * (0.5 + random())
        if self.late and random() < self.late:
            delay += self.late_s * random()
        return max(not_before, self.loop.time() + delay)

    def go_down(self) -> None:
        """Every link is lost and none comes up until `come_up`; the tables stay as they are."""
        self.is_down = True
        for link in self.links:
            link.cut()

    def come_up(self) -> None:
        """The end of an outage."""
        self.is_down = False

    def _push(self, ids: list[SessionId]) -> None:
        self.links = [link for link in self.links if link.process.alive]
        for link in self.links:
            link.push(ids)

    def _ring(self) -> None:
        for link in self.links:
            link.ring()


class _LinkLost(Exception):
    """Whether the call was carried out is not known."""


class SimStore:
    """Implements `ports.store.Store` for one process. Raises StoreFailed like any store out of reach."""

    def __init__(self, server: StoreServer, process: Process) -> None:
        self._server = server
        self._loop = server.loop
        self.process = process
        self.cut_off = False
        """Cut from the server until it is set back; the link is lost with `cut`."""
        self.table = Table(100_000)
        self._feed = Feed()
        self._bell = Bell()
        self._linked = not server.is_down
        if not self._linked:
            self._loop.call_later(RECONNECT_S, self._connect)
        self._link = 0  # which link it is: what was under way on an older one is lost
        self._there = self._here = 0.0  # when the latest message arrives, each way
        self._waiting: dict[asyncio.Future[Any], None] = {}

    # The link

    def cut(self) -> None:
        """The link is lost, with everything that is under way on it; a new one comes up when it can."""
        if not self._linked or not self.process.alive:
            return
        self._linked = False
        self._link += 1
        self._loop.deliver(self.process, self._loop.time(), self._lost)

    def _lost(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting:
            if not answer.done():
                answer.set_exception(_LinkLost())
        self._loop.call_later(BLIND_S, self._go_blind, self._link)
        self._loop.call_later(RECONNECT_S, self._connect)

    def _go_blind(self, link: int) -> None:
        if not self._linked and link == self._link:
            self.table.clear()

    def _connect(self) -> None:
        if self._server.is_down or self.cut_off:
            self._loop.call_later(RECONNECT_S, self._connect)
            return
        self._linked = True
        self._link += 1
        self.table.clear()
        self._feed.publish((None,))
        self._bell.ring()

    def ring(self) -> None:
        """The server tells that something of the pools changed."""
        if self._linked:
            self._to_client(self._rung, self._link)

    def _rung(self, link: int) -> None:
        if link == self._link:
            self._bell.ring()

    def push(self, ids: list[SessionId]) -> None:
        """The server tells of changes."""
        if self._linked:
            self._to_client(self._heard, ids, self._link)

    def _heard(self, ids: list[SessionId], link: int) -> None:
        if link == self._link:
            for id in ids:
                self.table.drop(id)
            self._feed.publish(ids)

    def _to_client(self, arrive: Callable[..., None], *args: Any) -> None:
        when = self._here = self._server.arrival(self._here)
        self._loop.deliver(self.process, when, arrive, *args)

    async def _ask(
        self,
        name: str,
        operation: Callable[[SimTables], Coroutine[Any, Any, Any]],
        *,
        repeatable: bool = False,
    ) -> Any:
        until: float | None = None
        while True:
            if self._linked:
                try:
                    return await self._send(name, operation)
                except _LinkLost:
                    if not repeatable:
                        raise StoreFailed("link lost; whether the change was made is not known") from None
            until = until or self._loop.time() + PATIENCE_S
            if self._loop.time() >= until:
                raise StoreFailed("the store is out of reach")
            await asyncio.sleep(RECONNECT_S)

    def _send(
        self, name: str, operation: Callable[[SimTables], Coroutine[Any, Any, Any]]
    ) -> asyncio.Future[Any]:
        server = self._server
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[answer] = None
        when = self._there = server.arrival(self._there)
        self._loop.deliver(server.process, when, self._arrive, name, operation, answer, self._link)
        return answer

    def _arrive(self, name: str, operation: Any, answer: asyncio.Future[Any], link: int) -> None:
        server = self._server
        if link != self._link or server.is_down:
            return
        server.operations[name] = server.operations.get(name, 0) + 1
        error: Exception | None = None
        result: Any = None
        server.tables.writer = self.process.name
        coroutine = operation(server.tables)
        try:
            coroutine.send(None)
        except StopIteration as done:
            result = done.value
        except (AgentCubeError, KeyTaken) as exc:
            error = exc.with_traceback(None)
        self._to_client(self._answered, answer, result, error, link)
        if name in _WRITES:
            server.on_write(self.process)

    def _answered(self, answer: asyncio.Future[Any], result: Any, error: Any, link: int) -> None:
        if link != self._link:
            return  # `_lost` has told, or will
        self._waiting.pop(answer, None)
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    # ports.store.Store

    async def get(self, id: SessionId) -> Session:
        read = self.table.begin(id)
        true = False
        try:
            session: Session = await self._ask("get", lambda t: t.get(id), repeatable=True)
        finally:
            true = self.table.end(id, read)
        if true:
            self.table.put(session, b"%d" % session.revision)
        return session

    def peek(self, id: SessionId) -> Session | None:
        return self.table.sessions.get(id)

    async def list(self, query: SessionQuery) -> Page:
        page: Page = await self._ask("list", lambda t: t.list(query), repeatable=True)
        return page

    async def insert(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session:
        stored: Session = await self._ask(
            "insert", lambda t: t.insert(session, quota=quota, reservation=reservation)
        )
        return stored

    async def replace(self, session: Session, *, relaxed: bool = False) -> Session:
        try:
            stored: Session = await self._ask("replace", lambda t: t.replace(session, relaxed=relaxed))
        finally:
            self.table.drop(session.id)
        return stored

    async def delete(self, id: SessionId, *, revision: int) -> None:
        try:
            await self._ask("delete", lambda t: t.delete(id, revision=revision))
        finally:
            self.table.drop(id)

    async def lease_due(
        self, *, now: datetime, owner: str, lease: timedelta, limit: int
    ) -> Sequence[Session]:
        due: Sequence[Session] = await self._ask(
            "lease_due", lambda t: t.lease_due(now=now, owner=owner, lease=lease, limit=limit)
        )
        return due

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        await self._ask("touch", lambda t: t.touch(activity), repeatable=True)

    def changes(self) -> AsyncIterator[SessionId | None]:
        return self._feed.subscribe()

    async def put_warm(self, entry: WarmSandbox) -> None:
        await self._ask("put_warm", lambda t: t.put_warm(entry))

    async def list_warm(self, template: TemplateKey | None = None) -> Sequence[WarmSandbox]:
        entries: Sequence[WarmSandbox] = await self._ask(
            "list_warm", lambda t: t.list_warm(template), repeatable=True
        )
        return entries

    async def remove_warm(self, id: SandboxId) -> bool:
        removed: bool = await self._ask("remove_warm", lambda t: t.remove_warm(id))
        return removed

    async def claim_warm(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session | None:
        claimed: Session | None = await self._ask(
            "claim_warm", lambda t: t.claim_warm(session, quota=quota, reservation=reservation)
        )
        return claimed

    async def update_warm(self, entry: WarmSandbox) -> bool:
        updated: bool = await self._ask("update_warm", lambda t: t.update_warm(entry))
        return updated

    def pool_changes(self) -> AsyncIterator[None]:
        return self._bell.listen()

    async def put_template(self, template: Template) -> Template:
        stored: Template = await self._ask("put_template", lambda t: t.put_template(template))
        return stored

    async def get_template(self, key: TemplateKey) -> Template:
        template: Template = await self._ask("get_template", lambda t: t.get_template(key), repeatable=True)
        return template

    async def list_templates(
        self, *, kind: Kind | None = None, namespace: str | None = None
    ) -> Sequence[Template]:
        templates: Sequence[Template] = await self._ask(
            "list_templates", lambda t: t.list_templates(kind=kind, namespace=namespace), repeatable=True
        )
        return templates

    async def delete_template(self, key: TemplateKey) -> None:
        await self._ask("delete_template", lambda t: t.delete_template(key))

    async def lease_role(self, role: str, *, owner: str, now: datetime, lease: timedelta) -> bool:
        ours: bool = await self._ask(
            "lease_role", lambda t: t.lease_role(role, owner=owner, now=now, lease=lease)
        )
        return ours

    async def leave_role(self, role: str, *, owner: str) -> None:
        await self._ask("leave_role", lambda t: t.leave_role(role, owner=owner))

    async def check(self) -> None:
        await self._ask("check", lambda t: t.check(), repeatable=True)
