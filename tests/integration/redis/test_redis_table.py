"""What a process knows without asking is what another one wrote, or nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentcube.errors import SessionNotFound
from agentcube.model.ids import SessionId
from agentcube.stores.redis.table import Table
from agentcube.testing.eventually import eventually
from agentcube.testing.redis_server import RedisServer
from agentcube.testing.samples import sample_session
from agentcube.testing.store_suite import SECOND, next_change
from tests.integration.redis.world import Proxy, hasty, opened

pytestmark = pytest.mark.anyio


async def test_a_change_by_another_process_is_heard_and_known(server: RedisServer) -> None:
    settings = hasty()
    async with opened(server.url, settings) as ours, opened(server.url, settings) as theirs:
        session = await theirs.insert(sample_session())
        assert ours.peek(session.id) is None
        assert await ours.get(session.id) == session == ours.peek(session.id)
        changes = ours.changes()
        session = await theirs.replace(replace(session, message="changed"))
        assert await next_change(changes) == session.id
        assert ours.peek(session.id) is None
        assert await ours.get(session.id) == session == ours.peek(session.id)
        await theirs.delete(session.id, revision=session.revision)
        assert await next_change(changes) == session.id
        assert ours.peek(session.id) is None
        with pytest.raises(SessionNotFound):
            await ours.get(session.id)


async def test_activity_is_no_change_and_is_read(server: RedisServer) -> None:
    settings = hasty()
    async with opened(server.url, settings) as ours, opened(server.url, settings) as theirs:
        session = await ours.insert(sample_session())
        seen = await ours.get(session.id)
        later = session.last_activity_at + SECOND
        await theirs.touch({session.id: later})
        assert (await ours.get(session.id)).last_activity_at == later
        assert ours.peek(session.id) is seen  # no push, and the record was not read anew


async def test_an_answer_that_comes_with_the_news_of_a_change_is_not_kept(server: RedisServer) -> None:
    settings = hasty(answer_timeout_s=10)
    async with (
        Proxy(server.port).running() as proxy,
        opened(proxy.url, settings) as ours,
        opened(server.url, settings) as theirs,
    ):
        session = await theirs.insert(sample_session())
        before = server.calls("get")
        proxy.freeze_answers()
        reading = asyncio.ensure_future(ours.get(session.id))
        await eventually(lambda: server.calls("get") > before)
        changed = await theirs.replace(replace(session, message="changed"))
        await asyncio.sleep(0.05)  # for the push to be behind the answer; without it the test shows less
        proxy.thaw()
        assert await reading in (session, changed)
        assert ours.peek(session.id) in (None, changed)
        assert await ours.get(session.id) == changed


async def test_many_readers_and_writers_leave_only_the_truth(server: RedisServer) -> None:
    settings = hasty()
    async with opened(server.url, settings) as ours, opened(server.url, settings) as theirs:
        sessions = [await theirs.insert(sample_session()) for _ in range(5)]

        async def write(id: SessionId) -> None:
            for number in range(40):
                await theirs.replace(replace(await theirs.get(id), message=str(number)))

        async def read(id: SessionId, writing: asyncio.Task[None]) -> None:
            while not writing.done():
                await ours.get(id)

        async with asyncio.TaskGroup() as group:
            for session in sessions:
                writing = group.create_task(write(session.id))
                for _ in range(3):
                    group.create_task(read(session.id, writing))
        await ours.check()  # its answer comes after every push
        for session in sessions:
            assert ours.peek(session.id) in (None, await theirs.get(session.id))


async def test_the_table_is_bounded(server: RedisServer) -> None:
    async with opened(server.url, hasty(table_max=2)) as store:
        ids = [(await store.insert(sample_session())).id for _ in range(3)]
        for id in ids:
            await store.get(id)
        assert [store.peek(id) is None for id in ids] == [True, False, False]


def test_a_read_that_a_change_overtook_may_not_be_kept() -> None:
    table = Table(10)
    id = SessionId("a")
    first = table.begin(id)
    assert table.end(id, first)
    first, second = table.begin(id), table.begin(id)
    assert not table.end(id, first)
    assert table.end(id, second)
    overtaken = table.begin(id)
    table.drop(id)
    assert not table.end(id, overtaken)
    cleared = table.begin(id)
    table.clear()
    assert not table.end(id, cleared)
