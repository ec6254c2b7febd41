"""A session's phases and the one table of legal changes between them.

Everything about phases lives here, and this file does not know who acts on it. The diagram in
docs/reference/lifecycle.md is generated from `TRANSITIONS`.
"""

from __future__ import annotations

from enum import StrEnum

from agentcube.errors import InvalidTransition


class Phase(StrEnum):
    """Where a session stands. The values are the names on the wire."""

    PENDING = "Pending"  # accepted, no sandbox yet
    RUNNING = "Running"  # a sandbox exists and is not yet bound or answering
    READY = "Ready"
    PAUSING = "Pausing"
    PAUSED = "Paused"
    RESUMING = "Resuming"
    DELETING = "Deleting"
    DELETED = "Deleted"
    FAILED = "Failed"


class Trigger(StrEnum):
    """Why a phase changes."""

    PROVISION = "provision"  # the driver made the sandbox
    ANSWER = "answer"  # the sandbox is bound and answers
    SUSPEND = "suspend"
    SUSPENDED = "suspended"
    REVIVE = "revive"  # traffic arrived before the suspension was done
    RESUME = "resume"
    RESUMED = "resumed"
    RESUME_FAILED = "resume_failed"  # the session is kept asleep
    FAIL = "fail"
    DELETE = "delete"
    DELETED = "deleted"


P, T = Phase, Trigger

LIVE = frozenset({P.PENDING, P.RUNNING, P.READY, P.PAUSING, P.PAUSED, P.RESUMING})
"""Phases in which the session can still serve or come to serve a request."""

IDLE = frozenset({P.READY, P.PAUSED, P.FAILED})
"""Phases in which only the passing of time will change the session."""

TRANSITIONS: dict[tuple[Phase, Trigger], Phase] = {
    (P.PENDING, T.PROVISION): P.RUNNING,
    (P.RUNNING, T.ANSWER): P.READY,
    (P.READY, T.SUSPEND): P.PAUSING,
    (P.PAUSING, T.SUSPENDED): P.PAUSED,
    (P.PAUSING, T.REVIVE): P.READY,
    (P.PAUSED, T.RESUME): P.RESUMING,
    (P.RESUMING, T.RESUMED): P.READY,
    (P.RESUMING, T.RESUME_FAILED): P.PAUSED,
    **{(phase, T.FAIL): P.FAILED for phase in LIVE},
    **{(phase, T.DELETE): P.DELETING for phase in LIVE | {P.FAILED}},
    (P.DELETING, T.DELETED): P.DELETED,
}


def advance(phase: Phase, trigger: Trigger) -> Phase:
    """The phase that `trigger` leads to from `phase`.

    Raises:
        InvalidTransition: the table has no such row. Nothing else is ever raised.
    """
    try:
        return TRANSITIONS[phase, trigger]
    except KeyError:
        raise InvalidTransition(
            f"a session that is {phase} cannot {trigger}", phase=phase.value, trigger=trigger.value
        ) from None
