"""Several managers on one store: nothing is done twice, and what one of them leaves the others finish."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from agentcube.errors import StartFailed
from agentcube.model.ids import SandboxId
from agentcube.model.lifecycle import Phase
from agentcube.testing.eventually import eventually
from agentcube.testing.redis_server import RedisServer, running
from tests.integration.replicas.world import Nursery, World, replicas
from tests.redis_servers import program

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

Open = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running(program("redis"), tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def managers(nursery: Nursery, server: RedisServer, tmp_path: Path) -> Open:
    return lambda names, **settings: replicas(nursery, server, tmp_path, names, **settings)


# Once, whoever is asked


@pytest.fixture
async def three(managers: Open, anyio_backend: str) -> AsyncIterator[World]:
    """Three that all live: with a lease that a slow machine does not let run out."""
    async with managers("abc", lease_s=10) as world:
        await world.put()
        yield world


async def test_requests_of_one_session_or_key_at_all_managers_are_one(three: World) -> None:
    made = await asyncio.gather(*(r.create("key") for r in three.replicas.values() for _ in range(3)))
    (id,) = {session.id for session in made}
    assert {session.phase for session in made} == {Phase.READY}
    assert len(three.machine.boxes) == three.machine.counts("create").total() == 1

    await three["a"].call("suspend", id)
    woken = await asyncio.gather(*(r.call("wake", id) for r in three.replicas.values() for _ in range(3)))
    assert {session.phase for session in woken} == {Phase.READY}
    assert three.machine.counts("resume").total() == three.machine.counts("suspend").total() == 1

    await asyncio.gather(*(r.call("suspend", id) for r in three.replicas.values()))
    assert three.machine.counts("suspend").total() == 2
    await asyncio.gather(*(r.call("delete", id) for r in three.replicas.values()), return_exceptions=True)
    await three.settled()
    assert not three.machine.boxes


async def test_what_is_due_in_ten_sessions_is_done_once_each(three: World) -> None:
    made = await asyncio.gather(*(r.create(ttl=timedelta(seconds=4)) for r in [*three.replicas.values()] * 4))
    await eventually(lambda: three.machine.counts("destroy").total() >= len(made), within=60)
    await three.settled()
    assert await three.sessions() == []
    assert three.machine.counts("destroy") == {s.sandbox.id: 1 for s in made if s.sandbox}


async def test_a_pool_is_filled_by_one_and_claimed_by_all(three: World) -> None:
    await three.put(pool=4)
    await eventually(lambda: _ready(three, 4), within=60)
    assert three.machine.counts("create").total() == 4
    warm = set(three.machine.boxes)
    sessions = await asyncio.gather(*(r.create() for r in [*three.replicas.values(), three["a"]]))
    assert {s.sandbox.id for s in sessions if s.sandbox} == warm
    await eventually(lambda: _ready(three, 4), within=60)
    assert three.machine.counts("create").total() == 8
    # A template's change is everybody's at once; its pool is rolled by whoever keeps it.
    await three.put(pool=1, sessionTimeout="1h")
    for replica in three.replicas.values():
        session = await replica.create()
        assert (session.generation, session.idle_timeout) == (3, timedelta(hours=1))
    await eventually(lambda: _ready(three, 1), within=60)
    await three.settled()


async def _ready(world: World, count: int) -> bool:
    entries = await world.store.list_warm()
    return len(entries) == count and all(entry.sandbox is not None for entry in entries)


# One of them dies


async def test_a_creation_whose_manager_died_is_given_up_and_nothing_is_left(managers: Open) -> None:
    async with managers("ab", orphans_s=0.3) as world:
        await world.put()
        late = world.machine.hold("a", "create")
        creating = asyncio.ensure_future(world["a"].create())
        await world.machine.sent("a", "create")
        await world["a"].kill()
        with pytest.raises(ConnectionError):
            await creating
        await eventually(lambda: _none(world), within=60)
        late.set()  # what was on its way arrives when nobody knows it any more
        await eventually(lambda: world.machine.driver.calls.count(("create", _first(world))) == 1)
        await world.settled()


def _first(world: World) -> SandboxId | None:
    """The sandbox that a creation was sent for first."""
    return next(id for _, operation, id in world.machine.calls if operation == "create")


async def _none(world: World) -> bool:
    return await world.sessions() == []


async def test_a_keyed_creation_whose_manager_died_is_finished_for_its_retry(managers: Open) -> None:
    async with managers("ab", orphans_s=0.3) as world:
        await world.put()
        late = world.machine.hold("a", "create")
        creating = asyncio.ensure_future(world["a"].create("key"))
        await world.machine.sent("a", "create")
        (begun,) = await world.sessions()
        await world["a"].kill()
        with pytest.raises(ConnectionError):
            await creating
        session = await world["b"].create("key")
        assert (session.id, session.phase, session.attempt) == (begun.id, Phase.READY, 2)
        late.set()
        await eventually(lambda: world.machine.driver.calls.count(("create", _first(world))) == 1)
        await world.settled()  # what a's start made after all is found and destroyed


@pytest.mark.parametrize("operation", ["bind", "suspend", "resume", "destroy"])
async def test_what_a_dead_manager_was_doing_is_finished(managers: Open, operation: str) -> None:
    async with managers("ab") as world:
        await world.put()
        session = None if operation == "bind" else await world["a"].create()
        if session is not None and operation == "resume":
            await world["b"].call("suspend", session.id)
        world.machine.hold("a", operation)
        if session is None:
            asking = asyncio.ensure_future(world["a"].create("key"))
        else:
            wish = {"suspend": "suspend", "resume": "wake", "destroy": "delete"}[operation]
            asking = asyncio.ensure_future(world["a"].call(wish, session.id))
        await world.machine.sent("a", operation)
        if session is not None and operation == "resume":
            other = asyncio.ensure_future(world["b"].call("wake", session.id))  # waits for a's
        await world["a"].kill()
        with pytest.raises(ConnectionError):
            await asking
        await world.settled()
        match operation:
            case "bind":
                assert [s.phase for s in await world.sessions()] == [Phase.READY]
            case "suspend":
                assert [s.phase for s in await world.sessions()] == [Phase.PAUSED]
            case "resume":
                assert (await other).phase is Phase.READY
            case "destroy":
                assert await world.sessions() == []
                assert not world.machine.boxes


async def test_a_pool_whose_keeper_died_is_kept_by_another(managers: Open) -> None:
    async with managers("ab") as world:
        await world.put(pool=2)
        await eventually(lambda: _ready(world, 2), within=60)
        keeper = "a" if await world["a"].call("keeping") else "b"
        other = world["b" if keeper == "a" else "a"]
        late = world.machine.hold(keeper, "create")
        await other.create()
        await world.machine.sent(keeper, "create")  # the refill of a claim that the other made
        await world[keeper].kill()
        await eventually(lambda: _ready(world, 2), within=60)
        late.set()
        await other.create()
        await eventually(lambda: _ready(world, 2), within=60)


# One of them is slower than its lease


@pytest.mark.parametrize("fails", [False, True])
async def test_a_start_that_comes_late_is_nobody_s(managers: Open, fails: bool) -> None:
    async with managers("ab") as world:
        await world.put()
        late = world.machine.hold("a", "create")
        creating = asyncio.ensure_future(world["a"].create("key"))
        await world.machine.sent("a", "create")
        world["a"].signal(signal.SIGSTOP)
        session = await world["b"].create("key")
        if fails:
            world.machine.driver.fail("create", StartFailed("no room"))
        late.set()
        await eventually(lambda: world.machine.driver.calls.count(("create", _first(world))) == 1)
        world["a"].signal(signal.SIGCONT)
        told = await creating
        assert (told.id, told.phase) == (session.id, Phase.READY)
        await world.settled()  # a has destroyed what it made, and only that
        assert [s.sandbox for s in await world.sessions()] == [session.sandbox]


async def test_a_suspension_that_comes_late_does_not_happen(managers: Open) -> None:
    async with managers("ab") as world:
        await world.put()
        session = await world["a"].create()
        late = world.machine.hold("a", "suspend")
        suspending = asyncio.ensure_future(world["a"].call("suspend", session.id))
        await world.machine.sent("a", "suspend")
        world["a"].signal(signal.SIGSTOP)
        assert (await world["b"].call("wake", session.id)).phase is Phase.READY
        late.set()
        world["a"].signal(signal.SIGCONT)
        await asyncio.gather(suspending, return_exceptions=True)
        await world.settled()
        assert await world.phase(session.id) is Phase.READY


async def test_who_is_slow_and_alive_is_not_taken_over(managers: Open) -> None:
    async with managers("ab", lease_s=2) as world:
        await world.put()
        slow = world.machine.hold("a", "create")
        creating = asyncio.ensure_future(world["a"].create("key"))
        await world.machine.sent("a", "create")
        waiting = asyncio.ensure_future(world["b"].create("key"))
        (begun,) = await world.sessions()
        assert begun.hold is not None
        over = begun.hold.until + timedelta(seconds=2)

        async def renewed() -> bool:
            now = await world.store.get(begun.id)
            return now.hold is not None and now.hold.owner == "a" and now.hold.until > over

        await eventually(renewed, within=60)
        slow.set()
        session = await creating
        assert (session.phase, session.attempt) == (Phase.READY, 1)
        assert (await waiting).id == session.id
        assert world.machine.counts("create").total() == 1


async def test_a_store_that_stands_still_for_longer_than_a_lease_doubles_nothing(
    managers: Open, server: RedisServer
) -> None:
    async with managers("ab") as world:
        await world.put()
        session = await world["a"].create()
        gates = [world.machine.hold("a", operation) for operation in ("create", "suspend")]

        def ask(replica: str) -> list[asyncio.Future[Any]]:
            manager = world[replica]
            calls = manager.create("key"), manager.call("suspend", session.id)
            return [asyncio.ensure_future(call) for call in calls]

        asking = ask("a")
        for operation in ("create", "suspend"):  # it holds both now, whatever the other is asked
            await world.machine.sent("a", operation)
        asking += ask("b")
        server.signal(signal.SIGSTOP)
        await asyncio.sleep(1.5)  # what nobody can renew meanwhile is over
        server.signal(signal.SIGCONT)
        for gate in gates:
            gate.set()
        first, asleep, second, too = await asyncio.gather(*asking)
        assert first.id == second.id
        assert asleep.phase is too.phase is Phase.PAUSED
        await world.settled()
        assert {s.id for s in await world.sessions()} == {first.id, session.id}


# One of them stops


async def test_a_manager_that_stops_finishes_and_hands_over(managers: Open) -> None:
    async with managers("ab", lease_s=60) as world:
        await world.put(pool=1)
        await eventually(lambda: _ready(world, 1), within=60)
        keeper = "a" if await world["a"].call("keeping") else "b"
        other = world["b" if keeper == "a" else "a"]
        session = await other.create()
        gate = world.machine.hold(keeper, "suspend")
        suspending: asyncio.Future[Any] = asyncio.ensure_future(world[keeper].call("suspend", session.id))
        await world.machine.sent(keeper, "suspend")
        ending = asyncio.ensure_future(world[keeper].end())
        gate.set()
        await ending
        await asyncio.gather(suspending, return_exceptions=True)
        assert await world.phase(session.id) is Phase.PAUSED
