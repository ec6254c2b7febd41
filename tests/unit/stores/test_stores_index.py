"""Orders over sessions and subscriptions: against naive versions of themselves."""

from __future__ import annotations

import asyncio
import gc
from datetime import datetime, timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from agentcube.model.ids import SessionId
from agentcube.stores.feed import Feed
from agentcube.stores.index import Deadlines
from agentcube.stores.memory import MemoryStore
from agentcube.testing.samples import NOW, sample_session

IDS = st.sampled_from([SessionId(c) for c in "abcdefgh"])
SECONDS = st.integers(0, 20)


class DeadlineQueue(RuleBasedStateMachine):
    """`Deadlines` beside two dicts that are searched in full."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = Deadlines()
        self.due: dict[SessionId, datetime] = {}
        self.leased: dict[SessionId, datetime] = {}
        self.now = NOW

    @rule(id=IDS, at=SECONDS)
    def arm(self, id: SessionId, at: int) -> None:
        self.queue.set(id, NOW + timedelta(seconds=at))
        self.due[id] = NOW + timedelta(seconds=at)
        self.leased.pop(id, None)

    @rule(id=IDS)
    def disarm(self, id: SessionId) -> None:
        self.queue.set(id, None)
        self.due.pop(id, None)
        self.leased.pop(id, None)

    @rule(by=st.integers(0, 5))
    def wait(self, by: int) -> None:
        self.now += timedelta(seconds=by)

    @rule(limit=st.integers(0, 4), seconds=st.integers(1, 6))
    def lease(self, limit: int, seconds: int) -> None:
        free = [
            (at, id)
            for id, at in self.due.items()
            if at <= self.now and self.leased.get(id, self.now) <= self.now
        ]
        wanted = [id for _, id in sorted(free)[:limit]]
        span = timedelta(seconds=seconds)
        assert self.queue.lease(now=self.now, lease=span, limit=limit) == wanted
        self.leased |= dict.fromkeys(wanted, self.now + span)


TestDeadlineQueue = DeadlineQueue.TestCase
TestDeadlineQueue.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_re_arming_for_ever_keeps_the_queue_small() -> None:
    queue = Deadlines()
    for i in range(10_000):
        queue.set(SessionId(str(i % 10)), NOW + timedelta(seconds=i))
    assert len(queue._waiting) < 200
    assert queue.lease(now=NOW + timedelta(seconds=9990), lease=timedelta(seconds=1), limit=10) == ["0"]


@pytest.mark.anyio
async def test_an_overflowing_subscriber_gets_none_and_then_what_came_after() -> None:
    store = MemoryStore(pending_max=3)
    changes = store.changes()
    for id in "abcd":
        await store.insert(sample_session(id))
    await store.insert(sample_session("e"))
    assert [await anext(changes), await anext(changes)] == [None, "e"]


@pytest.mark.anyio
async def test_an_id_that_changes_often_is_pending_once() -> None:
    store = MemoryStore(pending_max=3)
    changes = store.changes()
    session = await store.insert(sample_session("a"))
    for _ in range(10):
        session = await store.replace(session)
    await store.insert(sample_session("b"))
    assert [await anext(changes), await anext(changes)] == ["a", "b"]


@pytest.mark.anyio
async def test_a_dropped_subscriber_is_forgotten() -> None:
    feed = Feed()
    subscription = feed.subscribe()
    feed.publish([SessionId("a")])
    assert await anext(subscription) == "a"
    del subscription
    gc.collect()
    assert len(feed._subscriptions) == 0


@pytest.mark.anyio
async def test_a_closed_feed_ends_its_readers_after_what_is_pending() -> None:
    feed = Feed()
    reader = feed.subscribe()
    waiting = asyncio.ensure_future(anext(feed.subscribe()))
    await asyncio.sleep(0)
    feed.publish([SessionId("a")])
    feed.close()
    assert [id async for id in reader] == ["a"]
    assert await waiting == "a"
    assert [id async for id in feed.subscribe()] == []
