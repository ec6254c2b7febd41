"""Crashes at any point, and starts on what they left: everything is finished or undone, nothing leaks."""

import asyncio
from datetime import timedelta

import pytest

from agentcube.errors import DriverFailed, SessionNotFound, StoreFailed, Unavailable
from agentcube.model.ids import new_sandbox_id
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmState
from agentcube.model.sandbox import SandboxSpec
from agentcube.ports.tokens import LOCAL
from agentcube.testing.eventually import eventually
from agentcube.testing.samples import sample_warm

pytestmark = pytest.mark.anyio


async def all_sessions(world):
    from agentcube.ports.store import SessionQuery

    return (await world.store.list(SessionQuery(limit=1000))).sessions


async def consistent(world) -> bool:
    """Every session rests, and exactly the sandboxes exist that records name."""
    sessions = await all_sessions(world)
    named = {s.sandbox.id for s in sessions if s.sandbox} | {e.id for e in await world.store.list_warm()}
    rests = all(s.phase in (Phase.READY, Phase.PAUSED, Phase.FAILED) for s in sessions)
    bound = all(world.driver.session_of(s.sandbox.id) == s.id for s in sessions if s.phase is Phase.READY)
    return rests and named == set(world.machine.boxes) and bound


async def one_warm(world) -> bool:
    return [e.state for e in await world.store.list_warm()] == [WarmState.READY]


@pytest.mark.parametrize(
    ("operation", "pool"),
    [("create", 0), ("bind", 0), ("bind", 1), ("ready", 0), ("ready", 1), ("observe", 0), ("observe", 1)],
)
async def test_a_crash_during_a_creation_is_finished_by_the_next_start(world, operation, pool) -> None:
    template = world.agent(warmPool={"target": pool})
    async with world.manager() as manager:
        await manager.service.catalog.put(world.AGENT, template)
        if pool:
            await eventually(lambda: one_warm(world))
        world.driver.hold(operation)
        creating = asyncio.ensure_future(manager.service.create_for(world.AGENT, LOCAL))
        await eventually(lambda: any(op == operation for op, _ in world.driver.calls))
        await eventually(lambda: manager._reconciler.flights == 1)
    await asyncio.wait({creating})
    assert creating.exception() is not None
    world.new_driver()
    async with world.manager():
        await eventually(lambda: consistent(world))
        sessions = await all_sessions(world)
        assert [s.phase for s in sessions] in ([Phase.READY], [])


async def test_a_crash_during_a_deletion_is_finished_by_the_next_start(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        world.driver.hold("destroy")
        deleting = asyncio.ensure_future(manager.service.sessions.delete(session.id, LOCAL))
        await eventually(lambda: ("destroy", session.sandbox.id) in world.driver.calls)
    await asyncio.gather(deleting, return_exceptions=True)
    world.new_driver()
    async with world.manager() as manager:
        await eventually(lambda: not world.machine.boxes)
        with pytest.raises(SessionNotFound):
            await manager.service.sessions.get(session.id, LOCAL)


@pytest.mark.parametrize("operation", ["suspend", "resume"])
@pytest.mark.parametrize("done", [False, True])
async def test_a_crash_while_falling_asleep_or_waking_is_finished(world, operation, done) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        if operation == "resume":
            await manager.service.sessions.suspend(session.id, LOCAL)
        world.driver.hold(operation)
        ask = getattr(manager.service.sessions, operation)
        asking = asyncio.ensure_future(ask(session.id, LOCAL))
        await eventually(lambda: (operation, session.sandbox.id) in world.driver.calls)
    await asyncio.gather(asking, return_exceptions=True)
    if done:  # the crash came after the driver, before the record
        world.machine.boxes[session.sandbox.id].asleep = operation == "suspend"
    world.new_driver()
    async with world.manager() as manager:
        await eventually(lambda: consistent(world))
        asleep = operation == "suspend"
        assert world.store.peek(session.id).phase is (Phase.PAUSED if asleep else Phase.READY)
        assert world.driver.asleep(session.sandbox.id) is asleep
        assert (await manager.service.wake(session.id)).phase is Phase.READY
        assert not world.driver.asleep(session.sandbox.id)


async def test_sleeping_sessions_are_adopted_and_sleep_on(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        await manager.service.sessions.suspend(session.id, LOCAL)
    world.new_driver()
    async with world.manager() as manager:
        assert [op for op, _ in world.driver.calls].count("adopt") == 1
        assert world.store.peek(session.id).phase is Phase.PAUSED
        assert world.driver.asleep(session.sandbox.id)
        await manager.service.sessions.delete(session.id, LOCAL)
        assert not world.machine.boxes


async def test_live_sessions_and_pools_are_adopted_and_strangers_destroyed(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
        await world.pool_of(manager, ready=2)
        sessions = [await world.session(manager) for _ in range(3)]
        await world.pool_of(manager, ready=2)
    kept = set(world.machine.boxes)
    stranger = new_sandbox_id()
    await world.driver.create(SandboxSpec(id=stranger))
    world.new_driver()
    async with world.manager() as manager:
        assert set(world.machine.boxes) == kept
        for session in sessions:
            assert (await manager.service.sessions.get(session.id, LOCAL)).phase is Phase.READY
        adopted = {id for op, id in world.driver.calls if op == "adopt"}
        assert adopted == kept
        assert (await world.session(manager)).sandbox.id in kept


async def test_a_pool_start_that_a_crash_cut_short_is_destroyed(world) -> None:
    half, unmade = new_sandbox_id(), new_sandbox_id()
    await world.driver.create(SandboxSpec(id=half))  # the crash came after the driver, before the record
    for id in (half, unmade):
        await world.store.put_warm(sample_warm(id, state=WarmState.STARTING))
    async with world.manager() as manager:
        assert not world.machine.boxes
        assert await world.store.list_warm() == []
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)


async def test_a_warm_sandbox_that_did_not_live_through_the_restart_is_replaced(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
        await world.pool_of(manager, ready=2)
    dead = next(iter(world.machine.boxes))
    world.new_driver().crash(dead)
    async with world.manager() as manager:
        assert dead not in world.machine.boxes
        await world.pool_of(manager, ready=2)


async def test_what_a_start_cannot_destroy_is_tried_again(world) -> None:
    stranger, half = new_sandbox_id(), new_sandbox_id()
    for id in (stranger, half):
        await world.driver.create(SandboxSpec(id=id))
    await world.store.put_warm(sample_warm(half, state=WarmState.STARTING))
    world.driver.fail("destroy", DriverFailed("umount: busy"), times=3)
    async with world.manager():
        await eventually(lambda: not world.machine.boxes)
        assert await world.store.list_warm() == []


async def test_sessions_whose_sandbox_is_gone_fail_with_the_reason(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
    world.machine.boxes.clear()
    world.new_driver()
    async with world.manager() as manager:
        told = await manager.service.sessions.get(session.id, LOCAL)
        assert (told.phase, told.reason) == (Phase.FAILED, "sandbox_died")


async def test_sessions_older_than_the_machine_say_so(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
    world.machine.boxes.clear()
    world.new_driver()
    world.settings["host_started_at"] = session.created_at + timedelta(seconds=1)
    async with world.manager() as manager:
        assert (await manager.service.sessions.get(session.id, LOCAL)).reason == "host_restarted"


async def test_a_sandbox_that_cannot_be_judged_is_kept_and_adopted_later(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        doubtful, failing = await world.session(manager), await world.session(manager)
    world.new_driver().blind = True
    world.driver.fail("adopt", DriverFailed("no answer"))
    async with world.manager() as manager:
        for session in (doubtful, failing):
            assert (await manager.service.sessions.get(session.id, LOCAL)).phase is Phase.READY
        world.driver.blind = False
        world.machine.boxes[doubtful.sandbox.id].alive = False

        async def told() -> bool:
            return (await manager.service.sessions.get(doubtful.id, LOCAL)).phase is Phase.FAILED

        await eventually(told)
        assert failing.sandbox.id in world.machine.boxes


async def test_a_store_out_of_reach_while_doubtful_sandboxes_are_adopted_does_not_end_the_manager(
    world,
) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        doubtful = await world.session(manager)
    readable = type(world.store)
    refused = asyncio.Event()

    class Unreadable(readable):
        async def get(self, id):
            refused.set()
            raise StoreFailed("the disk is gone")

    world.new_driver().blind = True
    async with world.manager() as manager:
        world.store.__class__ = Unreadable
        await asyncio.wait_for(refused.wait(), 10)
        world.store.__class__ = readable
        world.driver.blind = False
        world.machine.boxes[doubtful.sandbox.id].alive = False

        async def told() -> bool:
            return (await manager.service.sessions.get(doubtful.id, LOCAL)).phase is Phase.FAILED

        await eventually(told)


async def test_nothing_is_destroyed_while_the_store_cannot_be_read(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
    readable = type(world.store)

    class Unreadable(readable):
        async def list(self, query):
            raise StoreFailed("the disk is gone")

    world.store.__class__ = Unreadable
    world.new_driver()
    await world.driver.create(SandboxSpec(id=new_sandbox_id()))
    async with world.manager(recovered=False) as manager:
        await eventually(lambda: ("inventory", None) in world.driver.calls)
        creating = asyncio.ensure_future(world.session(manager))
        assert len(world.machine.boxes) == 2
        with pytest.raises(Unavailable):
            await manager.service.check()
        world.store.__class__ = readable
        assert (await creating).phase is Phase.READY  # it waited for the start to be over
        assert session.sandbox.id in world.machine.boxes
        assert len(world.machine.boxes) == 2  # the stranger is gone, the new session's is there


async def test_a_clean_stop_ends_everything_and_one_cut_short_is_finished_later(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=2))
        await world.pool_of(manager, ready=2)
        for _ in range(5):
            await world.session(manager)
        gate = world.driver.hold("destroy")
        clearing = asyncio.ensure_future(manager.clear())
        await eventually(lambda: any(op == "destroy" for op, _ in world.driver.calls))
    await asyncio.gather(clearing, return_exceptions=True)
    gate.set()
    world.new_driver()
    async with world.manager() as manager:
        await eventually(lambda: _no_sessions(world))
        await manager.clear()
        assert not world.machine.boxes
        assert await world.store.list_warm() == []
        with pytest.raises(Exception, match="stopping"):
            await world.session(manager)


async def _no_sessions(world) -> bool:
    return not await all_sessions(world)


async def test_run_may_be_run_again(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
    again = asyncio.ensure_future(manager.run())
    async with asyncio.timeout(5):
        await manager.recovered()
    assert (await world.session(manager)).phase is Phase.READY
    again.cancel()
    await asyncio.wait({again})


async def test_without_a_running_manager_nothing_is_promised(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
    with pytest.raises(Exception, match="stopping"):
        await world.session(manager)
