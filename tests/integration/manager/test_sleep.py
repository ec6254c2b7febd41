"""Sessions that sleep: when, how they are woken, what a driver that misbehaves does to them, and how they end."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import (
    DriverFailed,
    SessionBusy,
    SessionNotFound,
    SuspendFailed,
    Unreachable,
    WakeFailed,
)
from agentcube.manager.creation import Wish
from agentcube.manager.service import Changes
from agentcube.model.lifecycle import Phase
from agentcube.model.session import ACTIVITY_LAG, IDLE_ENOUGH, SUSPEND_RETRY
from agentcube.ports.tokens import LOCAL
from agentcube.testing.clock import FakeClock
from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio

AFTER = timedelta(minutes=5)
DROWSY = AFTER + ACTIVITY_LAG


async def made(world, manager, **more):
    """A session that sleeps after `AFTER`."""
    wish = Wish(template=world.INTERPRETER, suspend_after=AFTER, **more)
    return await manager.service.sessions.create(wish, LOCAL)


async def fallen_asleep(world, manager, **more):
    session = await made(world, manager, **more)
    world.tick.advance(DROWSY)
    await manager.deadlines.sweep()
    return await becomes(world, session, Phase.PAUSED)


async def becomes(world, session, phase):
    """The session, once it is in that phase and nobody looks after it any more."""
    await eventually(lambda: world.store.peek(session.id).phase is phase)
    return world.store.peek(session.id)


def count(world, operation: str) -> int:
    return [op for op, _ in world.driver.calls].count(operation)


async def test_an_idle_session_sleeps_and_requests_wake_it_together(world, timed) -> None:
    session = await made(world, timed)
    world.tick.advance(AFTER)
    await timed.deadlines.sweep()
    assert world.store.peek(session.id).phase is Phase.READY  # news of activity may be on its way
    world.tick.advance(ACTIVITY_LAG)
    await timed.deadlines.sweep()
    asleep = await becomes(world, session, Phase.PAUSED)
    assert (asleep.reason, asleep.phase_since) == ("idle", world.tick.now())
    assert world.driver.asleep(session.sandbox.id)
    woken = await asyncio.gather(*(timed.service.wake(session.id) for _ in range(20)))
    assert {(s.phase, s.reason) for s in woken} == {(Phase.READY, "request")}
    assert count(world, "resume") == 1
    assert not world.driver.asleep(session.sandbox.id)


async def test_activity_puts_sleep_off(world, timed) -> None:
    session = await made(world, timed)
    for _ in range(3):
        world.tick.advance(AFTER - timedelta(seconds=1))
        await world.store.touch({session.id: world.tick.now()})
        await timed.deadlines.sweep()
        await timed.service.suspect(session.id)
    assert count(world, "suspend") == 0
    world.tick.advance(DROWSY)
    await timed.deadlines.sweep()
    await becomes(world, session, Phase.PAUSED)


async def test_a_woken_session_is_not_sent_back_to_sleep_before_its_time(world, timed) -> None:
    session = await fallen_asleep(world, timed)
    await timed.service.wake(session.id)
    world.tick.advance(DROWSY - timedelta(seconds=1))
    await timed.deadlines.sweep()
    assert (await timed.service.suspect(session.id)).phase is Phase.READY


async def test_a_deadline_of_its_own_brings_it_to_sleep(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(suspendAfter="10ms"))
        session = await world.session(manager)
        await eventually(lambda: world.store.peek(session.id).phase is Phase.PAUSED, within=15)


async def test_a_sleeping_session_ends_by_idleness_and_by_its_ttl(world, timed) -> None:
    idle = await fallen_asleep(world, timed)
    old = await fallen_asleep(world, timed, ttl=timedelta(minutes=6), idle_timeout=timedelta(days=1))
    for session, end in ((old, old.expires_at), (idle, idle.due_at)):
        world.tick.advance(end - world.tick.now())
        await timed.deadlines.sweep()
        await eventually(lambda session=session: session.sandbox.id not in world.machine.boxes)
    assert count(world, "resume") == 0


@pytest.mark.parametrize("held", ["", "suspend", "resume"])
async def test_deletion_ends_sleep_at_any_point_and_leaves_nothing(world, timed, held) -> None:
    if held == "suspend":
        session = await made(world, timed)
        world.driver.hold("suspend")
        world.tick.advance(DROWSY)
        await timed.deadlines.sweep()
    else:
        session = await fallen_asleep(world, timed)
    waking = None
    if held == "resume":
        world.driver.hold("resume")
        waking = asyncio.ensure_future(timed.service.wake(session.id))
    if held:
        await eventually(lambda: count(world, held) == 1)
    await timed.service.sessions.delete(session.id, LOCAL)
    assert not world.machine.boxes
    assert world.store.peek(session.id) is None
    if waking is not None:
        with pytest.raises(SessionNotFound):
            await waking


async def test_a_sandbox_that_dies_asleep_fails_its_session(world) -> None:
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        await manager.service.sessions.suspend(session.id, LOCAL)
        world.driver.crash(session.sandbox.id)
        await eventually(lambda: world.store.peek(session.id).phase is Phase.FAILED)
        assert world.store.peek(session.id).reason == "sandbox_died"


# A request that comes too early


async def test_a_request_gives_up_a_suspension_under_way(world, timed) -> None:
    session = await made(world, timed)
    world.driver.hold("suspend")  # for ever
    world.tick.advance(DROWSY)
    await timed.deadlines.sweep()
    await eventually(lambda: count(world, "suspend") == 1)
    woken = await asyncio.gather(*(timed.service.wake(session.id) for _ in range(5)))
    assert {s.phase for s in woken} == {Phase.READY}
    assert not world.driver.asleep(session.sandbox.id)
    assert [c.phase for c in woken[0].history[-3:]] == [Phase.PAUSING, Phase.RESUMING, Phase.READY]


async def test_a_session_used_after_all_is_not_suspended(world, timed) -> None:
    session = await made(world, timed)
    world.tick.advance(DROWSY)
    pausing = replace(session, phase=Phase.PAUSING, reason=IDLE_ENOUGH).chronicled(world.tick.now())
    await world.store.replace(pausing)
    await world.store.touch({session.id: world.tick.now()})  # as by a Router's flush, just then
    assert (await timed.service.suspect(session.id)).phase is Phase.READY
    assert count(world, "suspend") == 0


async def test_a_suspension_that_is_late_is_refused(world, timed) -> None:
    """Two managers, one slower than its lease: what it asks for is not what is wanted any more."""
    session = await made(world, timed)
    gate = world.driver.hold("suspend")
    suspending = asyncio.ensure_future(timed.service.sessions.suspend(session.id, LOCAL))
    await eventually(lambda: count(world, "suspend") == 1)
    pausing = world.store.peek(session.id)
    ready = replace(pausing, phase=Phase.READY, hold=None, message="the other one was faster")
    await world.driver.resume(session.sandbox, fence=2 * pausing.revision + 1)
    await world.store.replace(ready)
    gate.set()
    with pytest.raises(SessionBusy):
        await suspending
    assert world.store.peek(session.id).message == "the other one was faster"
    assert not world.driver.asleep(session.sandbox.id)


# Drivers that misbehave


async def test_a_wake_that_fails_keeps_the_session_and_is_tried_once_for_all_who_wait(world, timed) -> None:
    session = await fallen_asleep(world, timed)
    world.driver.fail("resume", DriverFailed("no memory"))
    outcomes = await asyncio.gather(
        *(timed.service.wake(session.id) for _ in range(5)), return_exceptions=True
    )
    assert {(type(e), e.detail) for e in outcomes} == {(WakeFailed, "no memory")}
    assert count(world, "resume") == 1
    kept = world.store.peek(session.id)
    assert (kept.phase, kept.reason, kept.message) == (Phase.PAUSED, "wake_failed", "no memory")
    assert (await timed.service.wake(session.id)).phase is Phase.READY


async def test_a_wake_whose_answer_was_lost_is_done_again(world, timed) -> None:
    session = await fallen_asleep(world, timed)
    world.driver.fail("resume", DriverFailed("lost"), done=True)
    with pytest.raises(WakeFailed):
        await timed.service.wake(session.id)
    assert (await timed.service.wake(session.id)).phase is Phase.READY


async def test_a_wake_that_hangs_ends_at_its_deadline(world) -> None:
    world.settings["sleep_timeout_s"] = 0.05
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        await manager.service.sessions.suspend(session.id, LOCAL)
        gate = world.driver.hold("resume")
        with pytest.raises(WakeFailed, match=r"within 0\.05 s"):
            await manager.service.wake(session.id)
        gate.set()
        assert (await manager.service.wake(session.id)).phase is Phase.READY


@pytest.mark.parametrize("done", [False, True])
async def test_a_suspension_that_fails_is_undone_told_and_tried_again_later(world, timed, done) -> None:
    session = await made(world, timed)
    world.tick.advance(DROWSY)
    world.driver.fail("suspend", DriverFailed("no freezer"), done=done)
    await timed.deadlines.sweep()
    await eventually(lambda: world.store.peek(session.id).reason == "suspend_failed")
    awake = world.store.peek(session.id)
    assert (awake.phase, awake.message, awake.suspend_after) == (Phase.READY, "no freezer", AFTER)
    assert timed.service.sessions.stays_awake(awake) == "no freezer"
    assert not world.driver.asleep(session.sandbox.id)
    world.tick.advance(SUSPEND_RETRY - timedelta(seconds=1))
    await timed.deadlines.sweep()
    assert count(world, "suspend") == 1
    world.tick.advance(DROWSY)
    await timed.deadlines.sweep()
    asleep = await becomes(world, session, Phase.PAUSED)
    assert timed.service.sessions.stays_awake(asleep) is None


async def test_a_suspension_that_hangs_ends_at_its_deadline(world) -> None:
    world.settings["sleep_timeout_s"] = 0.05
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        session = await world.session(manager)
        world.driver.hold("suspend")
        with pytest.raises(SuspendFailed, match=r"within 0\.05 s"):
            await manager.service.sessions.suspend(session.id, LOCAL)
        assert world.store.peek(session.id).phase is Phase.READY


async def test_a_suspension_that_can_neither_be_done_nor_undone_counts_as_sleep(world, timed) -> None:
    session = await made(world, timed)
    world.driver.fail("suspend", DriverFailed("half"), done=True)
    world.driver.fail("resume", DriverFailed("stuck"))
    asleep = await timed.service.sessions.suspend(session.id, LOCAL)
    assert (asleep.phase, asleep.reason, asleep.message) == (Phase.PAUSED, "wake_failed", "stuck")
    assert (await timed.service.wake(session.id)).phase is Phase.READY
    assert not world.driver.asleep(session.sandbox.id)


async def test_a_driver_that_cannot_suspend_leaves_sessions_ready_and_they_say_why(world) -> None:
    world.clock = world.tick = FakeClock()
    world.new_driver(suspend=False)
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter(suspendAfter="1m"))
        session = await world.session(manager)
        world.tick.advance(timedelta(minutes=2))
        assert await manager.deadlines.sweep() is False
        stored = await world.store.get(session.id)
        assert stored.phase is Phase.READY
        assert stored.due_at == stored.last_activity_at + stored.idle_timeout + ACTIVITY_LAG
        body = (await client().get(f"/v1/sessions/{session.id}")).json()
        assert (body["suspend_after"], body["sleep"]) == (60.0, None)
        assert body["stays_awake"] == "this fake was told that it cannot"
        refused = await client().post(f"/v1/sessions/{session.id}/suspend")
        assert (refused.status_code, refused.json()["code"]) == (409, "suspend_unsupported")
        assert refused.json()["detail"] == body["stays_awake"]
        assert (await client().post(f"/v1/sessions/{session.id}/resume")).json()["phase"] == "Ready"


# Asked for


async def test_suspend_and_resume_are_repeatable_calls(world, api) -> None:
    made = (await api.post("/v1/sessions", json={"name": "my-interpreter"})).json()
    path = f"/v1/sessions/{made['id']}"
    assert (made["sleep"], made["stays_awake"], made["suspend_after"]) == (None, None, None)
    for _ in range(2):
        answer = await api.post(f"{path}/suspend")
        assert answer.status_code == 200
        body = answer.json()
        assert (body["phase"], body["reason"], body["sleep"]) == ("Paused", "asked", "frozen")
        assert body["phase_since"] >= made["phase_since"]
    assert (await api.get(path)).json()["usage"] is not None  # asleep, it holds what it held
    for _ in range(2):
        body = (await api.post(f"{path}/resume")).json()
        assert (body["phase"], body["reason"], body["sleep"]) == ("Ready", "asked", None)
    assert (count(world, "suspend"), count(world, "resume")) == (1, 1)


async def test_many_who_ask_at_once_share_one_suspension_and_one_wake(world, api) -> None:
    id = (await api.post("/v1/sessions", json={"name": "my-interpreter"})).json()["id"]
    for call, phase in (("suspend", "Paused"), ("resume", "Ready")):
        answers = await asyncio.gather(*(api.post(f"/v1/sessions/{id}/{call}") for _ in range(10)))
        assert {a.json()["phase"] for a in answers} == {phase}
        assert count(world, call) == 1


async def test_a_session_that_wakes_goes_back_to_sleep_when_that_is_asked(world, timed) -> None:
    session = await fallen_asleep(world, timed)
    gate = world.driver.hold("resume")
    waking = asyncio.ensure_future(timed.service.wake(session.id))
    await eventually(lambda: count(world, "resume") == 1)
    suspending = asyncio.ensure_future(timed.service.sessions.suspend(session.id, LOCAL))
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait({waking, suspending})
    assert suspending.result().phase is Phase.PAUSED
    assert world.driver.asleep(session.sandbox.id)


async def test_what_cannot_be_suspended_or_woken_says_so(world, timed) -> None:
    async with world.serving(timed) as clients:
        api, eve = clients(), clients(world.EVE)
        session = await made(world, timed)
        for call in ("suspend", "resume"):
            assert (await eve.post(f"/v1/sessions/{session.id}/{call}")).json()["code"] == "session_not_found"
            assert (await api.post(f"/v1/sessions/none/{call}")).status_code == 404
        world.driver.fail("suspend", Unreachable("no answer"))
        answer = await api.post(f"/v1/sessions/{session.id}/suspend")
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
            503,
            "suspend_failed",
            "1",
        )
        await api.post(f"/v1/sessions/{session.id}/suspend")
        world.driver.fail("resume", Unreachable("no answer"))
        answer = await api.post(f"/v1/sessions/{session.id}/resume")
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
            503,
            "wake_failed",
            "1",
        )
        world.driver.crash(session.sandbox.id)
        await timed.service.suspect(session.id)
        answer = await api.post(f"/v1/sessions/{session.id}/suspend")
        assert (answer.status_code, answer.json()["code"]) == (409, "invalid_transition")
        assert (await api.post(f"/v1/sessions/{session.id}/resume")).status_code == 502


async def test_a_session_that_has_not_started_cannot_be_suspended(world, timed) -> None:
    gate = world.driver.hold("create")
    creating = asyncio.ensure_future(made(world, timed))
    await eventually(lambda: count(world, "create") == 1)
    [id] = world.store._live.sessions
    with pytest.raises(Exception, match="Pending cannot suspend"):
        await timed.service.sessions.suspend(id, LOCAL)
    gate.set()
    assert (await creating).phase is Phase.READY


async def test_timeouts_of_a_sleeping_session_can_be_changed(world, timed) -> None:
    session = await fallen_asleep(world, timed)
    await timed.service.sessions.change(session.id, Changes(never_suspend=True), LOCAL)
    assert world.store.peek(session.id).phase is Phase.PAUSED
    await timed.service.wake(session.id)
    world.tick.advance(timedelta(minutes=9))
    await timed.deadlines.sweep()
    assert (await timed.service.suspect(session.id)).phase is Phase.READY
    await timed.service.sessions.change(session.id, Changes(suspend_after=timedelta(seconds=1)), LOCAL)
    await timed.deadlines.sweep()
    await becomes(world, session, Phase.PAUSED)
