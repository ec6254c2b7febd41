"""What a worker knows of sessions and may ask, over a real socket pair."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import AgentCubeError, SessionNotFound, StoreFailed, TemplateNotFound, Unavailable
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.ports.clock import Clock, SystemClock
from agentcube.ports.store import Page, SessionQuery
from agentcube.ports.tokens import Subject
from agentcube.stores.memory import MemoryStore
from agentcube.testing.clock import FakeClock
from agentcube.testing.eventually import eventually
from agentcube.testing.samples import sample_session
from agentcube.up.workers.answering import Answering
from agentcube.up.workers.link import LINE_BYTES_MAX, Link
from agentcube.up.workers.remote import Remote

pytestmark = pytest.mark.anyio


class Control:
    """Makes what it is told to, when it is told to."""

    def __init__(self) -> None:
        self.outcome: Session | Exception = TemplateNotFound("no template t", template="t")
        self.asked: list[object] = []
        self.gate = asyncio.Event()
        self.cancelled = 0

    async def _answer(self, *asked: object) -> Session:
        self.asked.append(asked)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        return await self._answer("create", template, subject, key)

    async def wake(self, id: SessionId) -> Session:
        return await self._answer("wake", id)

    async def suspect(self, id: SessionId) -> Session:
        return await self._answer("suspect", id)


@asynccontextmanager
async def linked(
    store: MemoryStore, control: Control, clock: Clock | None = None
) -> AsyncIterator[tuple[Remote, Answering]]:
    async def check() -> None:
        raise StoreFailed("the disk is gone")

    ends = [await asyncio.open_connection(sock=sock, limit=LINE_BYTES_MAX) for sock in socket.socketpair()]
    answering = Answering(Link(*ends[0]), store, control, check, clock or SystemClock())
    remote = Remote(Link(*ends[1]))
    async with asyncio.TaskGroup() as group:
        group.create_task(answering.run())
        following = group.create_task(remote.run())
        async with asyncio.timeout(30):
            await remote.known.wait()
            yield remote, answering
        ends[1][1].close()
        following.cancel()


async def test_the_table_follows_the_store() -> None:
    store = MemoryStore()
    first = await store.insert(sample_session("first"))
    async with linked(store, Control()) as (remote, _):
        assert remote.peek(first.id) == first
        second = await store.insert(sample_session("second"))
        changed = await store.replace(replace(first, metadata={"a": "b"}))
        await eventually(lambda: remote.peek(second.id) == second and remote.peek(first.id) == changed)
        await store.delete(second.id, revision=second.revision)
        await eventually(lambda: remote.peek(second.id) is None)
        with pytest.raises(SessionNotFound):
            await remote.get(second.id)
        assert await remote.get(first.id) == changed


async def test_every_change_of_the_table_is_told() -> None:
    store = MemoryStore()
    async with linked(store, Control()) as (remote, _):
        changes = remote.changes()
        made = await store.insert(sample_session("made"))
        assert await anext(changes) == made.id
        made = await store.replace(made)
        assert await anext(changes) == made.id
        assert remote.peek(made.id) == made
        await store.delete(made.id, revision=made.revision)
        assert await anext(changes) == made.id
        assert remote.peek(made.id) is None


async def test_what_was_missed_is_made_good() -> None:
    store = MemoryStore()
    gone = await store.insert(sample_session("gone"))
    async with linked(store, Control()) as (remote, _):
        assert remote.peek(gone.id) is not None
        # More changes than a subscription keeps, before anybody has a turn to read them.
        made = [sample_session(f"s-{n}") for n in range(5000)]
        await store.delete(gone.id, revision=gone.revision)
        for session in made:
            await store.insert(session)
        await eventually(lambda: remote.peek(gone.id) is None and remote.peek(made[-1].id) is not None)
        await eventually(lambda: all(remote.peek(session.id) is not None for session in made))


async def test_calls_and_their_errors_keep_their_meaning() -> None:
    control = Control()
    control.gate.set()
    async with linked(MemoryStore(), control) as (remote, _):
        session = sample_session("made")
        with pytest.raises(TemplateNotFound, match="no template t") as caught:
            await remote.create_for(session.template, Subject("alice", admin=True), key="again")
        assert caught.value.context == {"template": "t"}
        assert control.asked == [("create", session.template, Subject("alice", admin=True), "again")]
        control.outcome = session
        assert await remote.wake(session.id) == session
        assert remote.peek(session.id) == session  # known at once, not only by the next push
        assert await remote.suspect(session.id) == session
        with pytest.raises(StoreFailed, match="the disk is gone"):
            await remote.check()
        control.outcome = RuntimeError("a bug, with internals")
        with pytest.raises(AgentCubeError) as internal:
            await remote.wake(session.id)
        assert "internals" not in internal.value.detail


async def test_activity_arrives_in_the_time_of_the_store() -> None:
    store = MemoryStore()
    session = await store.insert(sample_session("busy"))
    later = session.last_activity_at + timedelta(minutes=5)
    async with linked(store, Control(), FakeClock(later)) as (remote, _):
        mine = later + timedelta(hours=1)  # a worker goes by its machine's clock
        await remote.touch({session.id: mine, SessionId("unknown"): mine})
        assert (await store.get(session.id)).last_activity_at == later


class Away(MemoryStore):
    """A shared store that is out of reach, or whose record `damaged` cannot be read; what it knew, it tells no more."""

    away = False
    damaged = SessionId("")

    def peek(self, id: SessionId) -> Session | None:
        return None if self.away or id == self.damaged else super().peek(id)

    async def get(self, id: SessionId) -> Session:
        if self.away or id == self.damaged:
            raise StoreFailed("away or damaged")
        return await super().get(id)

    async def list(self, query: SessionQuery) -> Page:
        if self.away or self.damaged:
            raise StoreFailed("away or damaged")
        return await super().list(query)

    def look(self) -> None:
        """Whoever follows is told to look at all again."""
        self._feed.publish((None,))


async def test_a_worker_knows_nothing_longer_than_the_store_does_and_is_told_when_that_is_back() -> None:
    store = Away()
    session = await store.insert(sample_session("there"))
    async with linked(store, Control()) as (remote, _):
        assert remote.peek(session.id) == session
        store.away = True
        store.look()
        await eventually(lambda: remote.peek(session.id) is None)
        with pytest.raises(StoreFailed):
            await remote.get(session.id)
        store.away = False
        store.look()
        await eventually(lambda: remote.peek(session.id) == session)


async def test_a_worker_that_starts_while_the_store_is_away_asks() -> None:
    store = Away()
    session = await store.insert(sample_session("there"))
    store.away = True
    async with linked(store, Control()) as (remote, _):
        with pytest.raises(StoreFailed):
            await remote.get(session.id)
        store.away = False
        assert await remote.get(session.id) == session
        assert remote.peek(session.id) == session


async def test_a_record_that_cannot_be_read_holds_up_no_worker_and_is_used_by_none() -> None:
    store = Away()
    good, bad = [await store.insert(sample_session(name)) for name in ("good", "bad")]
    async with linked(store, Control()) as (remote, _):
        store.damaged = bad.id
        await store.replace(bad)
        await eventually(lambda: remote.peek(bad.id) is None)
        with pytest.raises(StoreFailed):
            await remote.get(bad.id)
        assert remote.peek(good.id) == good
    async with linked(store, Control()) as (remote, _):  # it becomes known though not all can be listed
        assert await remote.get(good.id) == good
        changed = await store.replace(good)
        await eventually(lambda: remote.peek(good.id) == changed)


async def test_a_call_that_is_given_up_is_taken_back() -> None:
    control = Control()
    async with linked(MemoryStore(), control) as (remote, _):
        waking = asyncio.create_task(remote.wake(SessionId("s")))
        await eventually(lambda: control.asked)
        waking.cancel()
        await eventually(lambda: control.cancelled == 1)


async def test_calls_fail_when_the_main_process_is_gone() -> None:
    control = Control()
    async with linked(MemoryStore(), control) as (remote, answering):
        waking = asyncio.create_task(remote.wake(SessionId("s")))
        await eventually(lambda: control.asked)
        answering._link.close()
        with pytest.raises(Unavailable):
            await waking
        with pytest.raises(Unavailable):
            await remote.get(SessionId("s"))


async def test_draining_is_heard() -> None:
    async with linked(MemoryStore(), Control()) as (remote, answering):
        assert not remote.draining.is_set()
        answering.drain()
        await eventually(remote.draining.is_set)
