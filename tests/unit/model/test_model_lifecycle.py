"""The transition table: every pair of phase and trigger, and any walk through it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from agentcube.errors import InvalidTransition
from agentcube.model.lifecycle import IDLE, LIVE, TRANSITIONS, Phase, Trigger, advance
from agentcube.model.session import HISTORY_MAX, PhaseChange, Session, is_live, next_deadline
from agentcube.testing.samples import NOW, sample_session

# Written out once more, from the API's words and not from the table, so that a slip in one shows.
LEGAL = """
    Pending  provision     Running
    Pending  fail          Failed
    Pending  delete        Deleting
    Running  answer        Ready
    Running  fail          Failed
    Running  delete        Deleting
    Ready    suspend       Pausing
    Ready    fail          Failed
    Ready    delete        Deleting
    Pausing  suspended     Paused
    Pausing  revive        Ready
    Pausing  resume        Resuming
    Pausing  fail          Failed
    Pausing  delete        Deleting
    Paused   resume        Resuming
    Paused   fail          Failed
    Paused   delete        Deleting
    Resuming resumed       Ready
    Resuming resume_failed Paused
    Resuming fail          Failed
    Resuming delete        Deleting
    Failed   delete        Deleting
    Deleting deleted       Deleted
"""
EXPECTED = {(row[0], row[1]): row[2] for row in map(str.split, LEGAL.strip().splitlines())}


@pytest.mark.parametrize(("phase", "trigger"), list(product(Phase, Trigger)))
def test_every_pair_leads_where_the_api_says_or_nowhere(phase: Phase, trigger: Trigger) -> None:
    wanted = EXPECTED.get((phase.value, trigger.value))
    if wanted is not None:
        assert advance(phase, trigger) == wanted
        return
    with pytest.raises(InvalidTransition) as refused:
        advance(phase, trigger)
    assert refused.value.context == {"phase": phase.value, "trigger": trigger.value}


def test_every_trigger_and_phase_is_used() -> None:
    assert {t for _, t in TRANSITIONS} == set(Trigger)
    assert {p for p, _ in TRANSITIONS} | {Phase.DELETED} == set(Phase)


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_reachable_and_leads_to_deleted(phase: Phase) -> None:
    assert phase in _reachable(Phase.PENDING)
    assert Phase.DELETED in _reachable(phase)


def test_live_phases_are_those_that_can_come_to_serve() -> None:
    assert {p for p in Phase if Phase.READY in _reachable(p)} == LIVE
    assert Phase.DELETED not in IDLE


class Walk(RuleBasedStateMachine):
    """A session under any triggers at any times."""

    def __init__(self) -> None:
        super().__init__()
        self.session: Session = sample_session(suspend_after=timedelta(seconds=30))
        self.ended = False

    @rule(trigger=st.sampled_from(Trigger))
    def pull(self, trigger: Trigger) -> None:
        before = self.session
        if (before.phase, trigger) not in TRANSITIONS:
            with pytest.raises(InvalidTransition):
                before.advanced(trigger)
            return
        after = before.advanced(trigger, reason="because", message="so")
        assert (after.reason, after.message) == ("because", "so")
        assert after.revision == before.revision  # the store counts, not the model
        assert not self.ended
        assert is_live(before) or not is_live(after)  # nothing comes back to life
        self.ended = after.phase is Phase.DELETED
        self.session = after

    @rule(by=st.integers(0, 100))
    def use(self, by: int) -> None:
        at = self.session.last_activity_at + timedelta(seconds=by)
        self.session = replace(self.session, last_activity_at=at).rearmed()

    @invariant()
    def the_deadline_fits_the_phase(self) -> None:
        session = self.session
        assert session.due_at == next_deadline(session)
        assert (session.due_at is None) == (session.phase is Phase.DELETED)
        assert session.due_at is None or session.due_at <= session.expires_at


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


def _reachable(phase: Phase) -> set[Phase]:
    seen = {phase}
    while more := {to for (at, _), to in TRANSITIONS.items() if at in seen} - seen:
        seen |= more
    return seen


def test_a_session_keeps_its_latest_phase_changes_with_time_and_reason() -> None:
    session = sample_session().chronicled(NOW)
    at = NOW + timedelta(seconds=5)
    failed = session.advanced(Trigger.FAIL, reason="why", message="so").chronicled(at)
    assert failed.history == (
        PhaseChange(seq=1, phase=Phase.PENDING, at=NOW),
        PhaseChange(seq=2, phase=Phase.FAILED, at=at, reason="why", message="so"),
    )
    assert failed.phase_since == at
    assert replace(failed, message="other").chronicled(at + timedelta(1)).history == failed.history


def test_what_a_session_keeps_of_its_changes_is_bounded_and_has_no_gaps() -> None:
    session = sample_session(phase=Phase.READY).chronicled(NOW)
    for _ in range(HISTORY_MAX):
        for trigger in (Trigger.SUSPEND, Trigger.SUSPENDED, Trigger.RESUME, Trigger.RESUMED):
            session = session.advanced(trigger).chronicled(NOW)
    last = 1 + 4 * HISTORY_MAX
    assert [change.seq for change in session.history] == list(range(last + 1 - HISTORY_MAX, last + 1))


def test_a_record_without_history_came_to_its_phase_when_it_was_made() -> None:
    assert sample_session().phase_since == NOW
