"""The next step of a session, and the deadline that brings somebody to ask for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agentcube.model.lifecycle import IDLE as IDLE_PHASES
from agentcube.model.lifecycle import LIVE, Phase
from agentcube.model.plan import (
    Action,
    BeginDelete,
    BeginSuspend,
    Bind,
    Destroy,
    Fail,
    Launch,
    Release,
    Rest,
    Resume,
    Revive,
    Seen,
    Suspend,
    plan,
)
from agentcube.model.session import (
    ACTIVITY_LAG,
    ASKED,
    IDLE_ENOUGH,
    SUSPEND_FAILED,
    SUSPEND_RETRY,
    Session,
    next_deadline,
)
from agentcube.testing.samples import NOW, sample_sandbox, sample_session

SECOND = timedelta(seconds=1)
IDLE_TIMEOUT = timedelta(seconds=100)
SUSPEND_AFTER = timedelta(seconds=10)
TTL = timedelta(seconds=1000)
IDLE, DROWSY = IDLE_TIMEOUT + ACTIVITY_LAG, SUSPEND_AFTER + ACTIVITY_LAG


def session(phase: Phase, **fields: object) -> Session:
    values = {
        "idle_timeout": IDLE_TIMEOUT,
        "suspend_after": SUSPEND_AFTER,
        "expires_at": NOW + TTL,
        "reason": ASKED if phase is Phase.PAUSING else "",
        "sandbox": None if phase is Phase.PENDING else sample_sandbox("sb"),
    }
    return sample_session("s", phase=phase, **(values | fields))


def step(phase: Phase, seen: Seen = Seen.ALIVE, after: timedelta = timedelta(0), **fields: object) -> Action:
    return plan(session(phase, **fields), seen, now=NOW + after, can_suspend=True)


FRESH: dict[Phase, Action] = {
    Phase.PENDING: Launch(),
    Phase.RUNNING: Bind(),
    Phase.READY: Rest(),
    Phase.PAUSING: Suspend(),
    Phase.PAUSED: Rest(),
    Phase.RESUMING: Resume(),
    Phase.DELETING: Destroy(),
    Phase.DELETED: Rest(),
    Phase.FAILED: Release(),
}


@pytest.mark.parametrize(("phase", "seen"), list(product(Phase, (Seen.ALIVE, Seen.UNKNOWN))))
def test_a_fresh_session_takes_its_phase_s_step(phase: Phase, seen: Seen) -> None:
    assert step(phase, seen) == FRESH[phase]


@pytest.mark.parametrize("phase", sorted(LIVE))
def test_a_live_session_whose_sandbox_is_gone_fails(phase: Phase) -> None:
    assert step(phase, Seen.GONE) == Fail("sandbox_died")


@pytest.mark.parametrize("phase", sorted(LIVE - {Phase.PENDING}))
def test_a_live_session_without_a_sandbox_on_record_fails(phase: Phase) -> None:
    assert step(phase, Seen.NONE, sandbox=None) == Fail("sandbox_missing")


def test_a_pending_session_has_no_sandbox_yet() -> None:
    assert step(Phase.PENDING, Seen.NONE) == Launch()


@pytest.mark.parametrize("phase", [Phase.DELETING, Phase.DELETED, Phase.FAILED])
@pytest.mark.parametrize("seen", Seen)
def test_what_has_ended_does_not_fail_again(phase: Phase, seen: Seen) -> None:
    assert step(phase, seen) == FRESH[phase]


def test_a_failed_session_rests_once_its_sandbox_is_released() -> None:
    assert step(Phase.FAILED, Seen.NONE, sandbox=None) == Rest()
    assert step(Phase.FAILED, Seen.NONE, IDLE, sandbox=None) == BeginDelete("idle_timeout")


@pytest.mark.parametrize("phase", sorted(LIVE))
def test_any_live_session_ends_with_its_ttl(phase: Phase) -> None:
    busy = {"last_activity_at": NOW + TTL}
    assert not isinstance(step(phase, after=TTL - SECOND, **busy), BeginDelete)
    assert step(phase, after=TTL, **busy) == BeginDelete("ttl_expired")


@pytest.mark.parametrize("phase", sorted(LIVE))
def test_only_an_idle_phase_ends_with_the_idle_timeout(phase: Phase) -> None:
    assert not isinstance(step(phase, after=IDLE - SECOND), BeginDelete)
    over = step(phase, after=IDLE)
    assert over == (BeginDelete("idle_timeout") if phase in IDLE_PHASES else FRESH[phase])


def test_a_ready_session_is_suspended_when_idle_for_long_enough() -> None:
    assert step(Phase.READY, after=DROWSY - SECOND) == Rest()
    assert step(Phase.READY, after=DROWSY) == BeginSuspend()
    assert step(Phase.READY, after=DROWSY, suspend_after=None) == Rest()
    used = {"last_activity_at": NOW + SECOND}
    assert step(Phase.READY, after=DROWSY, **used) == Rest()


def test_the_time_to_sleep_counts_from_when_it_became_ready_at_the_earliest() -> None:
    woke = session(Phase.READY).chronicled(NOW + SECOND)
    assert plan(woke, Seen.ALIVE, now=NOW + DROWSY, can_suspend=True) == Rest()
    assert plan(woke, Seen.ALIVE, now=NOW + SECOND + DROWSY, can_suspend=True) == BeginSuspend()


def test_a_suspension_that_failed_is_tried_again_later_and_not_at_once() -> None:
    failed = session(Phase.READY, reason=SUSPEND_FAILED, idle_timeout=TTL).chronicled(NOW)
    assert plan(failed, Seen.ALIVE, now=NOW + DROWSY, can_suspend=True) == Rest()
    assert plan(failed, Seen.ALIVE, now=NOW + SUSPEND_RETRY, can_suspend=True) == BeginSuspend()
    used = replace(failed, last_activity_at=NOW + SUSPEND_RETRY)
    assert plan(used, Seen.ALIVE, now=NOW + SUSPEND_RETRY, can_suspend=True) == Rest()


def test_a_suspension_for_idleness_is_off_when_the_session_was_used_after_all() -> None:
    falling = {"reason": IDLE_ENOUGH}
    assert step(Phase.PAUSING, after=DROWSY, **falling) == Suspend()
    used = {**falling, "last_activity_at": NOW + SECOND}
    assert step(Phase.PAUSING, after=DROWSY, **used) == Revive()
    assert step(Phase.PAUSING, after=DROWSY, suspend_after=None, **falling) == Revive()


def test_a_suspension_that_was_asked_for_does_not_mind_earlier_activity() -> None:
    assert step(Phase.PAUSING, reason=ASKED) == Suspend()


def test_a_driver_that_cannot_suspend_keeps_it_ready() -> None:
    assert plan(session(Phase.READY), Seen.ALIVE, now=NOW + DROWSY, can_suspend=False) == Rest()


def test_ending_comes_before_sleeping_and_failing() -> None:
    assert step(Phase.READY, Seen.GONE, TTL) == BeginDelete("ttl_expired")
    assert step(Phase.READY, after=IDLE) == BeginDelete("idle_timeout")


SPANS = st.integers(0, 2000).map(lambda s: timedelta(seconds=s))


@st.composite
def sessions(draw: st.DrawFn) -> Session:
    phase = draw(st.sampled_from(Phase))
    return session(
        phase,
        idle_timeout=draw(SPANS),
        suspend_after=draw(st.none() | SPANS),
        expires_at=NOW + draw(SPANS),
        last_activity_at=NOW + draw(SPANS),
        sandbox=None if phase in (Phase.PENDING, Phase.FAILED) else sample_sandbox("sb"),
        reason=draw(st.sampled_from(["", IDLE_ENOUGH, ASKED, SUSPEND_FAILED])),
    ).chronicled(NOW + draw(SPANS))


@given(sessions(), SPANS)
def test_nobody_is_asked_too_early_or_left_waiting(session: Session, after: timedelta) -> None:
    """A resting session is not due, and one that is due does not rest: the queue neither spins nor sleeps."""
    due, now = next_deadline(session), NOW + after
    action = plan(session, Seen.UNKNOWN, now=now, can_suspend=True)
    if isinstance(action, Rest):
        assert due is None or due > now
    elif isinstance(action, BeginDelete | BeginSuspend):
        assert due is not None
        assert due <= now


@given(sessions(), SPANS, SPANS, st.booleans())
def test_time_alone_changes_a_plan_only_at_the_deadline(
    session: Session, first: timedelta, second: timedelta, can_suspend: bool
) -> None:
    assume(session.phase is not Phase.PAUSING)  # it is never left alone for long
    due = next_deadline(session)
    times: list[datetime] = sorted((NOW + first, NOW + second))
    assume(due is None or due > times[1])
    one, other = (plan(session, Seen.ALIVE, now=now, can_suspend=can_suspend) for now in times)
    assert one == other


@given(sessions(), SPANS)
def test_without_the_power_to_suspend_nothing_is_ever_suspended(session: Session, after: timedelta) -> None:
    assert plan(session, Seen.ALIVE, now=NOW + after, can_suspend=False) != BeginSuspend()
