"""The rules of the tables that no port method shows."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import LimitExceeded
from agentcube.model.ids import SessionId
from agentcube.model.pool import WarmState
from agentcube.ports.store import Quota, Reservation
from agentcube.stores.tables import DropReservation, PutReservation, Tables
from agentcube.testing.samples import NOW, sample_session, sample_warm

HOUR = timedelta(hours=1)


def reservation(key: str, *, hours: int) -> Reservation:
    return Reservation(key=key, fingerprint="f", session_id=SessionId("s"), expires_at=NOW + hours * HOUR)


def test_an_operation_changes_nothing_before_it_is_applied() -> None:
    tables = Tables()
    outcome = tables.insert(sample_session("a"))
    assert tables.sessions == {}
    tables.apply(outcome.changes)
    assert list(tables.sessions.values()) == [outcome.answer]


def test_reserving_drops_what_has_expired_and_only_that() -> None:
    tables = Tables()
    for key, hours in (("short", 1), ("renewed", 1), ("long", 9)):
        tables.apply(tables.insert(sample_session(), reservation=reservation(key, hours=hours)).changes)
    tables.apply([PutReservation(reservation("renewed", hours=9))])
    new = reservation("new", hours=9)
    with pytest.raises(LimitExceeded):  # a refusal forgets nothing
        tables.insert(sample_session(created_at=NOW + HOUR), Quota(owner=0), reservation=new)
    outcome = tables.insert(sample_session(created_at=NOW + HOUR), reservation=new)
    assert outcome.changes[1:] == (DropReservation("short"), PutReservation(new))
    tables.apply(outcome.changes)
    assert set(tables.reservations) == {"renewed", "long", "new"}


def test_a_ready_entry_has_a_sandbox_and_a_starting_one_has_none() -> None:
    ready = sample_warm()
    with pytest.raises(AssertionError):
        Tables().put_warm(replace(ready, sandbox=None))
    with pytest.raises(AssertionError):
        Tables().put_warm(replace(ready, state=WarmState.STARTING))
