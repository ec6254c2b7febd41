"""Warm pools on the fake driver."""

import asyncio

import pytest

from agentcube.drivers.fake import Silent
from agentcube.errors import CapacityExhausted, DriverFailed, StartFailed, StoreFailed
from agentcube.manager.creation import Wish
from agentcube.model.pool import WarmState
from agentcube.ports.tokens import LOCAL
from agentcube.stores.memory import MemoryStore
from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio


async def test_a_claim_takes_a_warm_sandbox_and_the_pool_is_refilled(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=3))
        await world.pool_of(manager, ready=3)
        warm = set(world.machine.boxes)
        sessions = [await world.session(manager) for _ in range(3)]
        assert {s.sandbox.id for s in sessions} == warm
        assert all(s.from_pool for s in sessions)
        await world.pool_of(manager, ready=3)
        assert len(world.machine.boxes) == 6


async def test_a_claim_never_waits_for_the_refill(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
        await world.pool_of(manager, ready=2)
        world.driver.hold("create")
        for _ in range(2):
            assert (await world.session(manager)).from_pool


async def test_sessions_with_wishes_of_their_own_start_cold(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
        own = Wish(template=world.INTERPRETER, resources={"memory_bytes": 64 << 20})
        session = await manager.service.sessions.create(own, LOCAL)
        assert not session.from_pool
        assert world.machine.boxes[session.sandbox.id].spec.resources.memory_bytes == 64 << 20
        assert world.machine.boxes[session.sandbox.id].spec.resources.cpu_millis == 1000


async def test_a_sessions_environment_reaches_a_warm_sandbox_with_the_binding(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
        wish = Wish(template=world.INTERPRETER, env={"STAGE": "test"})
        session = await manager.service.sessions.create(wish, LOCAL)
        assert session.from_pool
        assert world.machine.boxes[session.sandbox.id].env == {"STAGE": "test"}


async def test_a_changed_template_rolls_its_pool(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
        await world.pool_of(manager, ready=2)
        old = set(world.machine.boxes)
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2, sessionTimeout="1h"))

        async def rolled() -> bool:
            warm = await world.store.list_warm()
            return (
                len(world.machine.boxes) == 2
                and not old & set(world.machine.boxes)
                and [e.state for e in warm] == [WarmState.READY] * 2
            )

        await eventually(rolled)


class _Slow(MemoryStore):
    """A store that takes a turn of the event loop to keep an entry, as one with a disk does."""

    async def put_warm(self, entry):
        await super().put_warm(entry)
        await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(8))
async def test_a_template_that_changes_all_the_time_has_a_pool_in_the_end(world, turns: int) -> None:
    """A start that is given up before its first step counts as over like any other."""
    world.store = _Slow()
    async with world.manager() as manager:
        for number in range(20):
            variable = [{"name": "N", "value": str(number)}]
            manifest = world.interpreter(pool=3, template={"environment": variable})
            await manager.service.catalog.put(world.INTERPRETER, manifest)
            for _ in range(turns):
                await asyncio.sleep(0)
        await world.pool_of(manager, ready=3)
        await eventually(lambda: len(world.machine.boxes) == 3)


async def test_a_shrunk_pool_is_cut_and_a_deleted_template_drains_it(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=3))
        await world.pool_of(manager, ready=3)
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
        await eventually(lambda: len(world.machine.boxes) == 1)
        await manager.service.catalog.delete(world.INTERPRETER)
        await eventually(lambda: not world.machine.boxes)
        assert await world.store.list_warm() == []


async def test_deleting_a_template_gives_up_starts_under_way(world) -> None:
    async with world.manager() as manager:
        world.driver.hold("create")
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
        await eventually(lambda: len(world.machine.boxes) == 2)
        await manager.service.catalog.delete(world.INTERPRETER)
        await eventually(lambda: not world.machine.boxes)


async def test_refills_that_fail_are_told_and_tried_again_with_pauses(world) -> None:
    async with world.manager() as manager:
        world.driver.fail("create", CapacityExhausted("this machine is full"), times=2)
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))

        async def told() -> bool:
            return [r.last_error for r in await manager.service.pools()] == ["this machine is full"]

        await eventually(told)
        await world.pool_of(manager, ready=1)  # 0.5 s, then 1 s later
        assert [r.last_error for r in await manager.service.pools()] == [None]


async def test_no_more_starts_are_under_way_than_allowed(world) -> None:
    world.settings["refills_in_flight"] = 2
    async with world.manager() as manager:
        gate = world.driver.hold("create")
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=5))
        await manager.service.catalog.put(world.AGENT, world.agent(warmPool={"target": 5}))
        await eventually(lambda: len(world.machine.boxes) == 2)
        gate.set()
        await eventually(lambda: len(world.machine.boxes) == 10)


async def test_a_warm_sandbox_that_dies_is_replaced(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
        [dead] = world.machine.boxes
        world.driver.crash(dead)
        await eventually(lambda: dead not in world.machine.boxes and len(world.machine.boxes) == 1)
        await world.pool_of(manager, ready=1)


async def test_an_agents_pool_has_only_agents_that_answer(world) -> None:
    world.new_driver(programs={("mute",): Silent()})
    world.settings["start_timeout_s"] = 0.1
    async with world.manager() as manager:
        await manager.service.catalog.put(world.AGENT, world.agent(command=("mute",), warmPool={"target": 1}))

        async def told() -> bool:
            [report] = await manager.service.pools()
            return report.last_error is not None and report.ready == 0

        await eventually(told)


async def test_a_drained_sandbox_that_cannot_be_destroyed_is_tried_again(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
        world.driver.fail("destroy", DriverFailed("umount: busy"), times=2)
        await manager.service.catalog.delete(world.INTERPRETER)
        await eventually(lambda: not world.machine.boxes)


class _Full(MemoryStore):
    """A store whose disk is full from some moment on."""

    full = False

    async def remove_warm(self, id):
        if self.full:
            raise StoreFailed("the disk is full")
        return await super().remove_warm(id)


async def test_a_stop_does_not_wait_for_a_store_that_takes_nothing_more(world) -> None:
    world.store = _Full()
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
        await world.pool_of(manager, ready=2)
        world.store.full = True
        async with asyncio.timeout(5):
            await manager.clear()
    assert len(await world.store.list_warm()) == 2  # the next start's


async def test_one_templates_bad_start_does_not_stop_the_others(world) -> None:
    async with world.manager() as manager:
        world.driver.fail("create", StartFailed("no"), times=1)
        await manager.service.catalog.put(world.AGENT, world.agent(warmPool={"target": 1}))
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
