"""What to do next about one session: a pure function of what is stored and what exists.

Reconcilers call `plan` after every look and do exactly what it says; it leaves them nothing to
choose. `now` is an argument, so that the same code runs on a virtual clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import assert_never

from agentcube.model.lifecycle import IDLE, Phase
from agentcube.model.session import ASKED, Session, idle_deadline, sleep_deadline, was_used


class Seen(StrEnum):
    """What the driver says of a session's sandbox. UNKNOWN is never taken for GONE."""

    NONE = "none"  # the session has no sandbox on record
    ALIVE = "alive"
    GONE = "gone"  # certainly absent
    UNKNOWN = "unknown"  # not looked at, or the driver could not tell


@dataclass(frozen=True, slots=True)
class Launch:
    """Make the sandbox, then `provision`."""


@dataclass(frozen=True, slots=True)
class Bind:
    """Bind the sandbox to the session, wait until it answers, then `answer`."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Ask the driver to suspend, then `suspended` (or undo it and `revive` when it could not)."""


@dataclass(frozen=True, slots=True)
class Revive:
    """The session was used after all: see to it that nothing of it is suspended, then `revive`."""


@dataclass(frozen=True, slots=True)
class Resume:
    """Ask the driver to resume, then `resumed`."""


@dataclass(frozen=True, slots=True)
class BeginSuspend:
    """The session was idle long enough: store `suspend`."""


@dataclass(frozen=True, slots=True)
class BeginDelete:
    """Time is up: store `delete` with this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The sandbox is gone without our doing, or not on record: store `fail` with this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Destroy:
    """Destroy the sandbox (if any), then `deleted` and forget the session."""


@dataclass(frozen=True, slots=True)
class Release:
    """The session failed: destroy its sandbox and take it off the record; the session stays to tell why."""


@dataclass(frozen=True, slots=True)
class Rest:
    """Nothing to do before the session's `due_at`."""


Action = (
    Launch | Bind | Suspend | Revive | Resume | BeginSuspend | BeginDelete | Fail | Destroy | Release | Rest
)


def plan(session: Session, seen: Seen, *, now: datetime, can_suspend: bool) -> Action:
    """The one next step for `session`.

    `can_suspend` is the driver's capability; without it an idle session stays Ready until its idle
    timeout. Times are compared with `now` only, never with a clock.
    """
    match session.phase:
        case Phase.DELETED:
            return Rest()
        case Phase.DELETING:
            return Destroy()
        case Phase.FAILED:
            if session.sandbox is not None:
                return Release()
            return _when_over(session, now) or Rest()
        case Phase.PENDING | Phase.RUNNING | Phase.READY | Phase.PAUSING | Phase.PAUSED | Phase.RESUMING:
            return _plan_live(session, seen, now=now, can_suspend=can_suspend)
        case _:
            assert_never(session.phase)


def _when_over(session: Session, now: datetime) -> BeginDelete | None:
    if now >= session.expires_at:
        return BeginDelete("ttl_expired")
    if session.phase in IDLE and now >= idle_deadline(session):
        return BeginDelete("idle_timeout")
    if session.answer_by is not None and now >= session.answer_by:
        return BeginDelete("abandoned")
    return None


def _plan_live(session: Session, seen: Seen, *, now: datetime, can_suspend: bool) -> Action:
    if over := _when_over(session, now):
        return over
    if seen is Seen.GONE:
        return Fail("sandbox_died")
    if seen is Seen.NONE and session.phase is not Phase.PENDING:
        return Fail("sandbox_missing")  # only a damaged record says so; it will never serve again
    match session.phase:
        case Phase.PENDING:
            return Launch()
        case Phase.RUNNING:
            return Bind()
        case Phase.PAUSING:
            return Revive() if session.reason != ASKED and was_used(session, now) else Suspend()
        case Phase.RESUMING:
            return Resume()
    asleep = sleep_deadline(session) if session.phase is Phase.READY and can_suspend else None
    return Rest() if asleep is None or now < asleep else BeginSuspend()
