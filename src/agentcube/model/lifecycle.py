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
    REVIVE = "revive"  # there was activity before the suspension was done, or it could not be done
    RESUME = "resume"  # a request came, or somebody asked; also while the session falls asleep
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

MOVING = frozenset({P.PENDING, P.RUNNING, P.PAUSING, P.RESUMING, P.DELETING})
"""Phases that somebody is to end by acting on the sandbox."""

ASLEEP = frozenset({P.PAUSING, P.PAUSED})
"""Phases in which the sandbox may stand still and nobody has asked yet for it to go on."""

TRANSITIONS: dict[tuple[Phase, Trigger], Phase] = {
    (P.PENDING, T.PROVISION): P.RUNNING,
    (P.RUNNING, T.ANSWER): P.READY,
    (P.READY, T.SUSPEND): P.PAUSING,
    (P.PAUSING, T.SUSPENDED): P.PAUSED,
    (P.PAUSING, T.REVIVE): P.READY,
    (P.PAUSING, T.RESUME): P.RESUMING,
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
