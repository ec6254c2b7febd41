"""What a Router's client sees of a shared store: of its records, good and bad, and of its absence."""

from __future__ import annotations

import pytest

from agentcube.model.ids import SessionId
from agentcube.model.sandbox import Port
from agentcube.stores.redis.layout import Keys
from agentcube.testing.eventually import eventually
from agentcube.testing.redis_server import RedisServer
from tests.integration.redis.world import hasty, opened
from tests.integration.router.world import AGENT, FAST, OK, replying, session, world

pytestmark = pytest.mark.anyio

RECORDS = {
    "nonsense": (b"nonsense", 503),
    "not-utf-8": (b"1 - =alice\n\xff", 503),
    "empty": (b"", 503),
    "half": (b'1 - =alice\n{"v":1,"id":"half"', 503),
    "newer": (b'1 - =alice\n{"v":99}', 503),
    "gone": (None, 404),
}


async def test_records_that_cannot_be_read_are_a_503_of_that_session_alone(server: RedisServer) -> None:
    settings = hasty()
    keys = Keys(settings.prefix)
    async with opened(server.url, settings) as store, world(FAST, store=store) as w:
        ports = {8080: await w.tcp(replying(OK))}
        for name in ("good", "older", *RECORDS):
            await store.insert(session(AGENT, ports, (Port(port=8080),), id=SessionId(name), due_at=None))
        older = server.command("GET", keys.sessions + "older")
        at = older.index(b'"history":')
        end = older.index(
            b'"revision"', at
        )  # written before there was a history, with a field that is no more
        server.command("SET", keys.sessions + "older", older[:at] + b'"gone":[1],' + older[end:])
        for name, (record, _) in RECORDS.items():
            if record is None:
                server.command("DEL", keys.sessions + name)
            else:
                server.command("SET", keys.sessions + name, record)
        for name, (_, status) in RECORDS.items():
            answer = await w.ask(session=name)
            assert answer.status == status, name
            assert answer.problem["code"] == ("session_not_found" if status == 404 else "store_failed")
            assert ("retry-after" in answer) == (status == 503)
        for name in ("good", "older"):
            assert (await w.ask(session=name)).body == b"ok"


async def test_a_store_that_is_away_ends_with_503_what_it_may_tell_no_longer(server: RedisServer) -> None:
    async with (
        opened(server.url, hasty(blind_s=0.5)) as store,
        world(FAST, store=store) as w,
    ):
        ports = {8080: await w.tcp(replying(OK))}
        known = await store.insert(session(AGENT, ports, (Port(port=8080),), id=SessionId("known")))
        assert (await w.ask(session=known.id)).body == b"ok"
        server.kill()
        answers = {(await w.ask(session=known.id)).status for _ in range(3)}
        assert answers <= {200, 503}  # on a machine that is slow, 0.5 s may be over
        assert (await w.ask(session="unknown")).status == 503
        await eventually(lambda: store.peek(known.id) is None)
        answer = await w.ask(session=known.id)
        assert (answer.status, answer.problem["code"]) == (503, "store_failed")
        server.start()

        async def served() -> bool:
            return (await w.ask(session=known.id)).status == 200

        await eventually(served, within=30)
