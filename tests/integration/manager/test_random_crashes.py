"""A seeded storm: sessions come and go, sandboxes die, drivers refuse, and the manager is killed at any step."""

import asyncio
import functools
import itertools
import random

import pytest

from agentcube.errors import AgentCubeError, DriverFailed, StartFailed, Unreachable
from agentcube.model.lifecycle import TRANSITIONS, Phase
from agentcube.ports.store import SessionQuery
from agentcube.ports.tokens import LOCAL
from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio

WEATHER = ["create", "create", "create", "vanish", "delete", "die", "refuse", "look", "suspend", "resume"]


async def settled(world) -> bool:
    """Every session rests, the pool is full, and exactly the sandboxes that are on record exist."""
    sessions = (await world.store.list(SessionQuery(limit=1000))).sessions
    warm = await world.store.list_warm()
    boxes = world.machine.boxes
    named = [s.sandbox.id for s in sessions if s.sandbox] + [e.id for e in warm]
    assert len(named) == len(set(named)), "a sandbox is on record twice"
    for session in sessions:
        box = boxes.get(session.sandbox.id) if session.sandbox else None
        if session.phase is Phase.READY and box is not None:
            assert box.session == session.id, "a Ready session's sandbox is bound to another"
            assert not box.asleep, "a Ready session's sandbox sleeps"
        assert_is_a_walk(session)
    rests = all(s.phase in (Phase.READY, Phase.PAUSED, Phase.FAILED) for s in sessions)
    return rests and len(warm) == 2 and set(named) == set(boxes) and all(b.whole for b in boxes.values())


def assert_is_a_walk(session) -> None:
    """A session's history is one through the table, without gaps, that ends where the session is."""
    steps = {(phase, to) for (phase, _), to in TRANSITIONS.items()}
    steps.add(
        (Phase.FAILED, Phase.PENDING)
    )  # a warm sandbox that was no good, before anybody saw the session
    for one, next in itertools.pairwise(session.history):
        assert next.seq == one.seq + 1
        assert (one.phase, next.phase) in steps
    assert session.history[-1].phase is session.phase


async def quietly(work) -> None:
    try:
        await work()
    except AgentCubeError:
        pass


async def storm(world, manager, chance: random.Random) -> None:
    """Some things at once, for a random number of turns of the loop; what is under way is left so."""
    doing = []
    for _ in range(chance.randrange(1, 12)):
        ids = [s.id for s in (await world.store.list(SessionQuery(limit=1000))).sessions]
        match chance.choice(WEATHER):
            case "create":
                doing.append(asyncio.ensure_future(quietly(lambda: world.session(manager))))
            case "vanish":
                gone = asyncio.ensure_future(quietly(lambda: world.session(manager)))
                for _ in range(chance.randrange(10)):
                    await asyncio.sleep(0)
                gone.cancel()
                doing.append(gone)
            case "suspend" | "resume" as wish if ids:
                call = getattr(manager.service.sessions, wish)
                doing.append(
                    asyncio.ensure_future(quietly(functools.partial(call, chance.choice(ids), LOCAL)))
                )
            case "delete" if ids:
                delete = functools.partial(manager.service.sessions.delete, chance.choice(ids), LOCAL)
                doing.append(asyncio.ensure_future(quietly(delete)))
            case "die" if world.machine.boxes:
                world.driver.crash(chance.choice(list(world.machine.boxes)))
            case "refuse":
                operation = chance.choice(
                    ["create", "bind", "destroy", "observe", "adopt", "suspend", "resume"]
                )
                error = {"create": StartFailed("no"), "bind": Unreachable("no")}.get(
                    operation, DriverFailed("no")
                )
                half = chance.random() < 0.5
                world.driver.fail(
                    operation,
                    error,
                    half_made=operation == "create" and half,
                    done=operation in ("suspend", "resume") and half,
                )
            case "look" if ids:
                look = functools.partial(manager.service.suspect, chance.choice(ids))
                doing.append(asyncio.ensure_future(quietly(look)))
        for _ in range(chance.randrange(6)):
            await asyncio.sleep(0)
    world.doing.extend(doing)


@pytest.mark.parametrize("seed", range(12))
async def test_after_any_storm_of_crashes_everything_is_accounted_for(world, seed) -> None:
    chance = random.Random(seed)
    world.settings |= {"observe_s": 0.01, "lease_s": 0.05, "refill_backoff_max_s": 0.05}
    world.doing = []
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
    for _ in range(8):
        world.new_driver()
        async with world.manager(recovered=chance.random() < 0.7) as manager:
            await storm(world, manager, chance)
    world.new_driver()
    async with world.manager():
        await eventually(lambda: settled(world), within=15)
    for work in world.doing:
        work.cancel()
    await asyncio.gather(*world.doing, return_exceptions=True)
