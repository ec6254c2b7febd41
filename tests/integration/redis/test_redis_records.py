"""Records and stores that are damaged, older or newer: refused by name, and nothing else is held up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agentcube.errors import SessionNotFound, StoreFailed
from agentcube.model.ids import SessionId
from agentcube.ports.store import Quota, SessionQuery
from agentcube.stores.redis.address import Place, parse_address
from agentcube.stores.redis.layout import Keys
from agentcube.stores.redis.link import Link
from agentcube.stores.redis.schema import check_schema
from agentcube.stores.redis.settings import RedisSettings
from agentcube.stores.redis.store import RedisStore
from agentcube.testing.eventually import eventually
from agentcube.testing.redis_server import RedisServer
from agentcube.testing.samples import KEY, NOW, full_session, sample_session, sample_template, sample_warm
from agentcube.testing.store_suite import lease_ids, sample_reservation
from tests.integration.redis.world import hasty, opened, refused, works

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings() -> RedisSettings:
    return hasty()


@pytest.fixture
def keys(settings: RedisSettings) -> Keys:
    return Keys(settings.prefix)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"", "damaged"),
        (b"nonsense", "damaged"),
        (b"1 - =ada\n", "damaged"),
        (b'1 - =ada\n{"v":1}', "damaged"),
        (b"1 - =ada\n\xff", "damaged"),
        (b'1 - =ada\n{"v":99}', "written by a newer AgentCube"),
    ],
)
async def test_a_session_that_cannot_be_read_is_named_and_holds_no_deadline_up(
    server: RedisServer, settings: RedisSettings, keys: Keys, record: bytes, reason: str
) -> None:
    async with opened(server.url, settings) as store:
        await store.insert(sample_session("bad", due_at=NOW))
        good = await store.insert(sample_session("good", due_at=NOW))
        server.command("SET", keys.sessions + "bad", record)
        for call in (store.get(SessionId("bad")), store.list(SessionQuery())):
            with pytest.raises(StoreFailed, match=f"session bad .*{reason}"):
                await call
        assert await lease_ids(store, NOW) == ["good"]
        assert await store.get(good.id) == good
        if record.startswith(b"1 - "):  # its head is whole: it can be ended
            await store.delete(SessionId("bad"), revision=1)
            assert (await store.list(SessionQuery())).sessions == (good,)
        else:
            for change in (
                store.replace(sample_session("bad")),
                store.delete(SessionId("bad"), revision=1),
            ):
                with pytest.raises(StoreFailed, match="session bad is damaged"):
                    await change


async def test_an_older_record_is_read_and_written_as_ours(
    server: RedisServer, settings: RedisSettings, keys: Keys
) -> None:
    """A field that a later version added is not in it; one that it dropped is."""
    async with opened(server.url, settings) as store:
        session = await store.insert(full_session(id="old"))
        record = server.command("GET", keys.sessions + "old")
        server.command("SET", keys.sessions + "old", record.replace(b'{"v":1,', b'{"v":1,"gone":[1,2],'))
        assert await store.get(session.id) == session
        assert (await store.replace(session)).revision == 2
        assert b"gone" not in server.command("GET", keys.sessions + "old")


async def test_a_session_whose_record_is_gone_is_absent_everywhere(
    server: RedisServer, settings: RedisSettings, keys: Keys
) -> None:
    async with opened(server.url, settings) as store:
        session = await store.insert(sample_session("gone", due_at=NOW))
        server.command("DEL", keys.sessions + "gone")
        with pytest.raises(SessionNotFound):
            await store.get(session.id)
        assert (await store.list(SessionQuery())).sessions == ()
        assert await lease_ids(store, NOW) == []
        assert server.command("EXISTS", f"{keys.base}due") == 0
        await store.insert(sample_session(owner="ada"), quota=Quota(total=1))  # nor does it count


async def test_damaged_entries_templates_and_keys_are_named(
    server: RedisServer, settings: RedisSettings, keys: Keys
) -> None:
    async with opened(server.url, settings) as store:
        await store.put_warm(sample_warm("bad", created_at=NOW))
        whole = sample_warm("whole", created_at=NOW.replace(year=2027))
        await store.put_warm(whole)
        server.command("HSET", keys.warm, "bad", "rubbish")
        claimed = await store.claim_warm(sample_session())
        assert claimed is not None
        assert claimed.sandbox == whole.sandbox  # a damaged entry holds nobody up
        with pytest.raises(StoreFailed, match="pool entry bad is damaged"):
            await store.list_warm()
        await store.put_template(sample_template())
        server.command("HSET", keys.templates, "CodeInterpreter/default/my-interpreter", "rubbish")
        with pytest.raises(StoreFailed, match="template CodeInterpreter/default/my-interpreter is damaged"):
            await store.get_template(KEY)
        await store.insert(sample_session(), reservation=sample_reservation("s"))
        (name,) = server.command("KEYS", f"{keys.base}key:*")
        server.command("SET", name, "rubbish")
        with pytest.raises(StoreFailed, match="idempotency key is damaged"):
            await store.insert(sample_session(), reservation=sample_reservation("s"))


async def test_a_store_of_a_newer_version_is_refused_and_left_as_it_is(
    server: RedisServer, settings: RedisSettings, keys: Keys
) -> None:
    async with opened(server.url, settings) as store:
        session = await store.insert(sample_session())
        server.command("HSET", keys.meta, "schema", 99)
        await eventually(lambda: _refuses(store))  # told at once, though it was open
        with pytest.raises(StoreFailed):
            await store.replace(session)
    await refused(server.url, settings, "written by a newer AgentCube (store version 99")
    server.command("HSET", keys.meta, "schema", "x")
    await refused(server.url, settings, "version is damaged")
    server.command("HDEL", keys.meta, "id")
    await refused(server.url, settings, f"its key {keys.meta} is damaged")


async def test_a_store_is_upgraded_once_by_whoever_comes_first(
    server: RedisServer, settings: RedisSettings, keys: Keys
) -> None:
    """The next version's step, tried on this one's store."""
    steps_taken = []

    async def step(link: Link, keys: Keys) -> None:
        steps_taken.append(server.command("HGET", keys.meta, "schema"))
        await link.call("SET", keys.base + "new", "1")

    async with opened(server.url, settings) as old:
        id = old.id
        link = await Link.open(_place(server))
        for _ in range(2):
            assert await check_schema(link, keys, version=3, steps={1: step, 2: step}) == id
        assert steps_taken == [b"1", b"2"]
        await eventually(lambda: _refuses(old))
        server.command("SET", f"{keys.base}upgrading", "somebody")
        with pytest.raises(StoreFailed, match="being upgraded by another process"):
            await check_schema(link, keys, version=4, steps={3: step})
        with pytest.raises(StoreFailed, match="too old to be upgraded"):
            await check_schema(link, keys, version=4, steps={})
        link.abort("done")


async def test_a_reservation_leaves_by_itself(
    server: RedisServer, settings: RedisSettings, keys: Keys
) -> None:
    async with opened(server.url, settings) as store:
        await store.insert(sample_session(), reservation=sample_reservation("s"))
        (name,) = server.command("KEYS", f"{keys.base}key:*")
        assert 0 < server.command("PTTL", name) <= 24 * 3600 * 1000


async def test_nothing_is_left_of_what_was_deleted(
    server: RedisServer, settings: RedisSettings, keys: Keys
) -> None:
    async with opened(server.url, settings) as store:
        session = await store.insert(full_session(id="a", due_at=NOW))
        await lease_ids(store, NOW)
        session = await store.replace(replace(session, sandbox=None))
        await store.put_warm(sample_warm())
        claimed = await store.claim_warm(sample_session("b"))
        assert claimed is not None
        await store.put_warm(sample_warm("w"))
        assert await store.remove_warm(sample_warm("w").id)
        for gone in (session, claimed):
            await store.delete(gone.id, revision=gone.revision)
        assert set(server.command("KEYS", "*")) == {keys.meta.encode()}


def _place(server: RedisServer) -> Place:
    return parse_address(server.url).places[0]


async def _refuses(store: RedisStore) -> bool:
    return not await works(store)
