"""Deadlines and deaths: what happens to sessions that nobody touches, or whose sandbox ends."""

from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import DriverFailed, SessionNotFound, StartFailed, StoreFailed, Unreachable
from agentcube.manager.creation import Wish
from agentcube.manager.service import Changes
from agentcube.model.ids import new_sandbox_id
from agentcube.model.lifecycle import Phase
from agentcube.model.session import ACTIVITY_LAG
from agentcube.ports.tokens import LOCAL
from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio


async def phase(manager, session) -> Phase | None:
    try:
        return (await manager.service.sessions.get(session.id, LOCAL)).phase
    except SessionNotFound:
        return None


async def swept(manager, session, wanted: Phase | None) -> None:
    """Sweep the deadlines once; the session is to be `wanted` soon after."""
    await manager.deadlines.sweep()

    async def holds() -> bool:
        return await phase(manager, session) is wanted

    await eventually(holds, within=5)


async def test_an_idle_session_ends_after_its_timeout_and_an_active_one_does_not(world, timed) -> None:
    idle, busy = await world.session(timed), await world.session(timed)
    world.tick.advance(timedelta(minutes=14))
    await world.store.touch({busy.id: world.tick.now()})
    world.tick.advance(timedelta(minutes=1))
    await timed.deadlines.sweep()
    assert await phase(timed, idle) is Phase.READY  # news of what was done a moment ago may be on its way
    world.tick.advance(ACTIVITY_LAG)
    await swept(timed, idle, None)
    assert await phase(timed, busy) is Phase.READY
    world.tick.advance(timedelta(minutes=14))
    await swept(timed, busy, None)
    assert not world.machine.boxes


async def test_a_session_ends_at_its_ttl_however_active(world, timed) -> None:
    session = await timed.service.sessions.create(
        Wish(template=world.INTERPRETER, ttl=timedelta(minutes=20)), LOCAL
    )
    for _ in range(4):
        world.tick.advance(timedelta(minutes=5))
        await world.store.touch({session.id: world.tick.now()})
    await swept(timed, session, None)


async def test_a_patched_deadline_holds_instead_of_the_old(world, timed) -> None:
    session = await world.session(timed)
    changes = Changes(idle_timeout=timedelta(hours=1))
    await timed.service.sessions.change(session.id, changes, LOCAL)
    world.tick.advance(timedelta(minutes=30))
    await timed.deadlines.sweep()
    assert await phase(timed, session) is Phase.READY
    world.tick.advance(timedelta(minutes=31))
    await swept(timed, session, None)


async def test_a_deadline_loop_wakes_for_what_is_due(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        wish = Wish(template=world.INTERPRETER, ttl=timedelta(seconds=0.5))
        await manager.service.sessions.create(wish, LOCAL)
        await eventually(lambda: not world.machine.boxes, within=3)


async def test_a_deletion_that_the_driver_refuses_is_tried_again(world, timed) -> None:
    session = await world.session(timed)
    world.driver.fail("destroy", DriverFailed("umount: busy"))
    await timed.service.sessions.delete(session.id, LOCAL)
    assert await phase(timed, session) is Phase.DELETING
    assert world.machine.boxes
    world.tick.advance(timedelta(seconds=3))  # its lease
    await swept(timed, session, None)
    assert not world.machine.boxes


async def test_a_sandbox_that_dies_fails_its_session_without_any_request(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        dead, alive = await world.session(manager), await world.session(manager)
        world.driver.crash(dead.sandbox.id)

        async def failed() -> bool:
            return await phase(manager, dead) is Phase.FAILED

        await eventually(failed, within=3)
        await eventually(lambda: list(world.machine.boxes) == [alive.sandbox.id], within=3)
        told = await manager.service.sessions.get(dead.id, LOCAL)
        assert (told.reason, told.sandbox) == ("sandbox_died", None)
        assert await phase(manager, alive) is Phase.READY


async def test_a_suspected_sandbox_is_looked_at_at_once(world, timed) -> None:
    session = await world.session(timed)
    assert (await timed.service.suspect(session.id)).phase is Phase.READY
    world.driver.crash(session.sandbox.id)
    assert (await timed.service.suspect(session.id)).phase is Phase.FAILED


async def test_what_cannot_be_told_is_never_taken_for_gone(world, timed) -> None:
    session = await world.session(timed)
    world.driver.blind = True
    assert (await timed.service.suspect(session.id)).phase is Phase.READY
    world.driver.blind = False
    world.driver.fail("observe", DriverFailed("no /proc"))
    assert (await timed.service.suspect(session.id)).phase is Phase.READY


async def test_a_failed_session_is_forgotten_after_its_idle_timeout(world, timed) -> None:
    world.driver.fail("create", StartFailed("no"))
    session = await world.session(timed)
    assert session.phase is Phase.FAILED
    world.tick.advance(timedelta(minutes=15) + ACTIVITY_LAG)
    await swept(timed, session, None)


async def test_a_warm_sandbox_that_is_no_good_is_replaced_by_a_cold_start(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(pool=1))
        await world.pool_of(manager, ready=1)
        world.driver.fail("bind", Unreachable("PicoD does not answer"))
        session = await world.session(manager)
        assert (session.phase, session.from_pool) == (Phase.READY, False)
        assert world.driver.session_of(session.sandbox.id) == session.id


async def test_while_the_store_fails_nothing_is_destroyed(world, timed) -> None:
    session = await world.session(timed)

    class Broken(type(world.store)):
        async def lease_due(self, **_):
            raise StoreFailed("the disk is gone")

    world.store.__class__ = Broken
    world.tick.advance(timedelta(hours=1))
    with pytest.raises(StoreFailed):
        await timed.deadlines.sweep()
    assert session.sandbox.id in world.machine.boxes


async def test_who_saw_a_sandbox_gone_does_not_fail_a_session_that_has_another(world, timed) -> None:
    """A look may be old by the time it is put on record: another manager may have started the session anew."""
    session = await world.session(timed)
    assert session.sandbox is not None
    seen = replace(session, sandbox=replace(session.sandbox, id=new_sandbox_id()))
    await timed._reconciler._acts.fail(seen, "sandbox_died", "")
    assert await phase(timed, session) is Phase.READY
    await timed._reconciler._acts.fail(session, "sandbox_died", "")
    assert await phase(timed, session) is Phase.FAILED
