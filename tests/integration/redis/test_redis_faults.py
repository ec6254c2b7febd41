"""A server that is killed, stopped, full, emptied or cut off: what callers see, and that nothing is doubled."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from agentcube.errors import SessionNotFound, StoreFailed
from agentcube.model.ids import SessionId
from agentcube.ports.store import SessionQuery
from agentcube.testing.eventually import eventually
from agentcube.testing.redis_server import RedisServer, running
from agentcube.testing.samples import NOW, sample_session, sample_warm
from agentcube.testing.store_suite import lease_ids, next_change
from tests.integration.redis.world import Callers, Proxy, hasty, opened, refused, works
from tests.redis_servers import fresh_settings, program

pytestmark = pytest.mark.anyio


async def test_a_server_killed_and_restarted_loses_and_doubles_nothing(server: RedisServer) -> None:
    async with opened(server.url, hasty()) as store:
        callers = Callers(store)
        await callers.fill(200)
        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(callers.create(20))
            await callers.made(40)
            server.kill()
            await eventually(lambda: bool(callers.failures))
            server.start()
        assert len(callers.acknowledged) == 160
        await callers.check()


async def test_while_the_server_is_away_known_sessions_are_told_and_the_rest_fails_at_once(
    server: RedisServer,
) -> None:
    async with opened(server.url, hasty(outage_wait_s=1)) as store:
        known = await store.get((await store.insert(sample_session())).id)
        changes = store.changes()
        server.kill()
        for _ in range(2):  # one is lost with the link, one waits whether the server comes back soon
            with pytest.raises(StoreFailed):
                await store.insert(sample_session())
        began = time.monotonic()
        for call in (store.get(known.id), store.insert(sample_session()), store.check(), store.list_warm()):
            with pytest.raises(StoreFailed):
                await call
        assert time.monotonic() - began < 1
        assert store.peek(known.id) == known
        server.start()
        assert await next_change(changes) is None  # look at all again
        assert await store.get(known.id) == known


async def test_what_is_known_is_not_told_for_longer_than_it_may_be_blind(server: RedisServer) -> None:
    async with opened(server.url, hasty(blind_s=0.2)) as store:
        known = await store.get((await store.insert(sample_session())).id)
        changes = store.changes()
        server.kill()
        await eventually(lambda: store.peek(known.id) is None)
        assert await next_change(changes) is None  # who has a table of his own may use it no longer either


async def test_a_start_without_a_server_says_where_it_looked(server: RedisServer) -> None:
    server.kill()
    await refused(server.url, hasty(), f"127.0.0.1:{server.port} cannot be used: connection refused")


async def test_a_stopped_server_fails_calls_in_bounded_time_and_then_goes_on(server: RedisServer) -> None:
    async with opened(server.url, hasty(answer_timeout_s=1, connect_timeout_s=1)) as store:
        callers = Callers(store)
        await callers.fill(20)
        known = await store.get((await store.insert(sample_session())).id)
        server.signal(signal.SIGSTOP)  # as CLIENT PAUSE, but for as long as we like
        with pytest.raises(StoreFailed, match="does not answer; whether the change was made is not known"):
            await store.insert(sample_session("during"))
        assert store.peek(known.id) == known
        server.signal(signal.SIGCONT)
        await callers.create(5)
        await callers.check(besides={SessionId("during"), known.id})
        assert await store.get(known.id) == known


async def test_a_server_paused_for_ten_seconds_doubles_and_loses_nothing(server: RedisServer) -> None:
    """With the settings as they are; CLIENT PAUSE holds commands back, and does them later."""
    async with opened(server.url, fresh_settings()) as store:
        callers = Callers(store)
        await callers.fill(60)
        known = await store.get((await store.insert(sample_session())).id)
        server.command("CLIENT", "PAUSE", 10_000)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(callers.create(10))
            await eventually(lambda: bool(callers.failures) or bool(callers.acknowledged), within=30)
            assert callers.failures  # calls do not wait ten seconds
            assert store.peek(known.id) == known  # whoever knows a session goes on
        assert len(callers.acknowledged) == 40
        await callers.check(besides={known.id})


async def test_a_full_server_makes_no_sessions_and_lets_those_there_are_change_and_end(
    server: RedisServer,
) -> None:
    async with opened(server.url, hasty()) as store:
        session = await store.insert(sample_session(due_at=NOW))
        await store.put_warm(sample_warm())
        server.command("CONFIG", "SET", "maxmemory", 1)
        for call in (
            store.insert(sample_session()),
            store.claim_warm(sample_session()),
            store.put_warm(sample_warm()),
            store.check(),
        ):
            with pytest.raises(StoreFailed, match="memory is full"):
                await call
        assert len(await store.list_warm()) == 1
        await store.touch({session.id: session.last_activity_at.replace(year=2027)})
        assert await lease_ids(store, NOW) == [session.id]
        session = await store.replace(replace(session, message="still here"))
        assert (await store.get(session.id)).last_activity_at.year == 2027
        await store.delete(session.id, revision=session.revision)
        server.command("CONFIG", "SET", "maxmemory", 0)
        await store.check()
        assert (await store.list(SessionQuery())).sessions == ()


async def test_a_server_that_evicts_sessions_is_refused(tmp_path: Path) -> None:
    options = ("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    with running(program("valkey"), tmp_path / "valkey", *options) as server:
        await refused(server.url, hasty(), "allkeys-lru throws sessions away")


async def test_connections_that_break_all_the_time_double_nothing(server: RedisServer) -> None:
    async with Proxy(server.port).running() as proxy, opened(proxy.url, hasty(outage_wait_s=5)) as store:
        callers = Callers(store)
        await callers.fill(200)

        async def cut_again_and_again() -> None:
            while True:
                await asyncio.sleep(0.02)
                proxy.cut()

        async with asyncio.TaskGroup() as group:
            cutting = group.create_task(cut_again_and_again())
            async with asyncio.TaskGroup() as callers_group:
                for _ in range(8):
                    callers_group.create_task(callers.create(20))
            cutting.cancel()
        await callers.check()


async def test_a_network_that_swallows_everything_is_noticed(server: RedisServer) -> None:
    quick = hasty(answer_timeout_s=1, connect_timeout_s=1)
    async with Proxy(server.port).running() as proxy, opened(proxy.url, quick) as store:
        known = await store.get((await store.insert(sample_session())).id)
        proxy.freeze()
        with pytest.raises(StoreFailed, match="does not answer"):
            await store.insert(sample_session())
        assert store.peek(known.id) == known
        proxy.thaw()
        await eventually(lambda: works(store))
        assert await store.get(known.id) == known


async def test_a_slow_server_slows_each_call_and_not_one_behind_the_other(server: RedisServer) -> None:
    async with Proxy(server.port).running() as proxy, opened(proxy.url, hasty()) as store:
        proxy.delay_s = 0.2
        async with asyncio.timeout(30):  # one after the other they would take 80
            sessions = await asyncio.gather(*(store.insert(sample_session()) for _ in range(200)))
        assert {s.revision for s in sessions} == {1}


async def test_an_emptied_server_is_a_new_store(server: RedisServer) -> None:
    async with opened(server.url, hasty()) as store:
        before = store.id
        session = await store.insert(sample_session())
        changes = store.changes()
        server.command("FLUSHALL")
        assert await next_change(changes) is None
        assert store.peek(session.id) is None
        with pytest.raises(SessionNotFound):
            await store.get(session.id)
        assert store.id != before
        await store.insert(session)


async def test_a_server_that_forgets_scripts_is_taught_them_again(server: RedisServer) -> None:
    async with opened(server.url, hasty()) as store:
        session = await store.insert(sample_session())
        server.command("SCRIPT", "FLUSH")
        session = await store.replace(session)
        server.command("SCRIPT", "FLUSH")
        later = session.last_activity_at.replace(year=2027)
        await store.touch({session.id: later})
        assert (await store.get(session.id)).last_activity_at == later


async def test_more_calls_than_may_wait_are_refused(server: RedisServer) -> None:
    async with opened(server.url, hasty(pending_max=4)) as store:
        server.command("CLIENT", "PAUSE", 200)
        calls = [asyncio.ensure_future(store.insert(sample_session())) for _ in range(5)]
        with pytest.raises(StoreFailed, match="too many calls"):
            await calls[4]
        assert all(s.revision == 1 for s in await asyncio.gather(*calls[:4]))
