"""`GET /v1/sessions/{id}/events`: every phase, once, in order, with reason and time; and no stream left behind."""

import asyncio
import contextlib
import json
from datetime import datetime

import pytest

from agentcube.errors import LimitExceeded, Unavailable
from agentcube.manager import events
from agentcube.model.lifecycle import Phase
from agentcube.model.session import HISTORY_MAX
from agentcube.ports.tokens import LOCAL
from agentcube.testing.eventually import eventually
from agentcube.testing.samples import NOW, sample_session

pytestmark = pytest.mark.anyio

PATIENCE_S = 20


@contextlib.asynccontextmanager
async def watching(client, session, **options):
    """An iterator over (event, id, data) of the stream."""
    path = f"/v1/sessions/{session.id}/events"
    async with client.stream("GET", path, **options) as response, asyncio.timeout(PATIENCE_S):
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store"
        yield parsed(response.aiter_lines())


async def parsed(lines):
    fields = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif "data" in fields:
            data = json.loads(fields["data"])
            assert data["event"] == fields["event"]
            yield fields["event"], fields.get("id"), data
            fields = {}


async def take(stream, count):
    return [await anext(stream) for _ in range(count)]


@pytest.fixture
async def watched(world):
    """A manager, a client of it and a Ready session."""
    async with world.manager() as manager, world.serving(manager) as clients:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        yield manager, clients(), await world.session(manager)
        await eventually(lambda: manager.service.events.streams == 0)
        assert manager.service.events._watchers == {}


async def test_a_stream_begins_with_the_present_and_tells_everything_to_the_end(world, watched) -> None:
    manager, api, session = watched
    async with watching(api, session) as stream:
        [(event, id, data)] = await take(stream, 1)
        assert (event, id, data["phase"], data["reason"]) == ("phase", "3", "Ready", "")
        assert datetime.fromisoformat(data["at"]) == world.store.peek(session.id).phase_since
        sessions = manager.service.sessions
        await sessions.suspend(session.id, LOCAL)
        await manager.service.wake(session.id)
        await sessions.delete(session.id, LOCAL)
        told = [(data["seq"], data["phase"], data["reason"]) async for _, _, data in stream]
    assert told == [
        (4, "Pausing", "asked"),
        (5, "Paused", "asked"),
        (6, "Resuming", "request"),
        (7, "Ready", "request"),
        (8, "Deleting", "deleted"),
        (9, "Deleted", ""),
    ]


async def test_a_client_that_comes_back_goes_on_where_it_was(watched) -> None:
    manager, api, session = watched
    await manager.service.sessions.suspend(session.id, LOCAL)
    async with watching(api, session, headers={"last-event-id": "3"}) as stream:
        assert [data["phase"] for _, _, data in await take(stream, 2)] == ["Pausing", "Paused"]
    async with watching(api, session, params={"after": 0}) as stream:
        assert [id for _, id, _ in await take(stream, 5)] == ["1", "2", "3", "4", "5"]
    async with watching(api, session, headers={"last-event-id": "5"}) as stream:
        news = asyncio.ensure_future(anext(stream))
        await manager.service.wake(session.id)
        assert (await news)[2]["phase"] == "Resuming"


async def test_changes_that_are_not_on_record_any_more_are_told_as_a_gap(world, watched) -> None:
    manager, api, session = watched
    for _ in range(HISTORY_MAX // 4 + 1):
        await manager.service.sessions.suspend(session.id, LOCAL)
        await manager.service.wake(session.id)
    oldest = world.store.peek(session.id).history[0].seq
    async with watching(api, session, params={"after": 1}) as stream:
        told = await take(stream, 1 + HISTORY_MAX)
    assert told[0] == ("gap", None, {"event": "gap", "from": 2, "to": oldest - 1})
    assert [data["seq"] for _, _, data in told[1:]] == list(range(oldest, oldest + HISTORY_MAX))


async def test_an_end_that_another_manager_made_is_told_for_what_is_known(world, watched) -> None:
    _, api, session = watched
    async with watching(api, session) as stream:
        await take(stream, 1)
        stored = world.store.peek(session.id)
        await world.driver.destroy(session.sandbox.id)
        await world.store.delete(session.id, revision=stored.revision)
        told = [(event, data) async for event, _, data in stream]
    assert told[0] == ("gap", {"event": "gap", "from": 4, "to": None})
    assert [data["phase"] for _, data in told[1:]] == ["Deleted"]


async def test_a_record_of_an_older_version_tells_its_phase(world, watched) -> None:
    _, api, _ = watched
    old = await world.store.insert(sample_session(phase=Phase.FAILED, reason="x", owner=LOCAL.name))
    async with watching(api, old) as stream:
        [(_, _, data)] = await take(stream, 1)
    assert (data["seq"], data["phase"], data["reason"]) == (1, "Failed", "x")
    assert datetime.fromisoformat(data["at"]) == NOW


async def test_lines_of_json_are_given_to_who_asks_for_them(watched) -> None:
    manager, api, session = watched
    path = f"/v1/sessions/{session.id}/events?after=1"
    async with api.stream("GET", path, headers={"accept": "application/x-ndjson"}) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        lines = response.aiter_lines()
        told = [json.loads(await anext(lines)) for _ in range(2)]
        assert [(t["event"], t["seq"], t["phase"]) for t in told] == [
            ("phase", 2, "Running"),
            ("phase", 3, "Ready"),
        ]
        await manager.service.sessions.delete(session.id, LOCAL)
        assert [json.loads(line)["phase"] async for line in lines] == ["Deleting", "Deleted"]


async def test_silence_is_broken_by_pings(watched, monkeypatch) -> None:
    monkeypatch.setattr(events, "PING_S", 0.01)
    _, api, session = watched
    async with watching(api, session) as stream:
        await take(stream, 1)
        assert await take(stream, 2) == [("ping", None, {"event": "ping"})] * 2


async def test_bad_questions_are_told_before_the_stream_begins(world, watched) -> None:
    manager, api, session = watched
    path = f"/v1/sessions/{session.id}/events"
    for options in (
        {"params": {"after": -1}},
        {"params": {"after": "x"}},
        {"params": {"after": 4}},
        {"headers": {"last-event-id": "x"}},
    ):
        answer = await api.get(path, **options)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid"), options
    async with world.serving(manager) as clients:
        assert (await clients(world.EVE).get(path)).json()["code"] == "session_not_found"
        assert (await clients(None).get(path)).status_code == 401
    assert (await api.get("/v1/sessions/none/events")).status_code == 404


async def test_streams_are_bounded_for_one_and_for_all(world) -> None:
    world.settings |= {"event_streams_max": 3, "event_streams_per_owner_max": 2}
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        open = []
        for owner, fits in (("a", True), ("a", True), ("a", False), ("b", True), ("c", False)):
            stream = manager.service.events.follow(session, owner, after=None)
            if fits:
                await anext(stream)
                open.append(stream)
            else:
                with pytest.raises(LimitExceeded):
                    await anext(stream)
        await open[0].aclose()
        assert manager.service.events.streams == 2
        await anext(manager.service.events.follow(session, "c", after=None))


async def test_a_server_that_stops_ends_its_streams(watched) -> None:
    manager, api, session = watched
    async with watching(api, session) as stream:
        await take(stream, 1)
        manager.refuse()
        assert [item async for item in stream] == []
    with pytest.raises(Unavailable):
        await anext(manager.service.events.follow(session, "x", after=None))


async def test_clients_that_leave_leave_nothing_behind(watched) -> None:
    manager, api, session = watched
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(watching(api, session)) for _ in range(20)]
        for stream in streams:
            await take(stream, 1)
        assert manager.service.events.streams == 20
    await eventually(lambda: manager.service.events.streams == 0, within=PATIENCE_S)
