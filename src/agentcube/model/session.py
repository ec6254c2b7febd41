"""A session: what a client holds, and when something may next be due for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import IDLE, LIVE, MOVING, Phase, Trigger, advance
from agentcube.model.sandbox import Port, Resources, Sandbox
from agentcube.model.template import AuthMode, TemplateKey

HISTORY_MAX = 16
"""Phase changes that a record keeps: four naps, some 100 bytes each."""

ACTIVITY_LAG = timedelta(seconds=2)
"""How long after it happened activity is sure to be on record: Routers look at what is under way four
times a second and write once a second. Nobody is taken for idle before that."""

SUSPEND_RETRY = timedelta(minutes=1)
"""A suspension that failed is tried again no sooner."""

ASKED = "asked"
"""Reason of a suspension or wake that somebody asked for; others begin by themselves."""

IDLE_ENOUGH = "idle"
"""Reason of a suspension because of `suspend_after`: it is off when there was activity after all."""

SUSPEND_FAILED = "suspend_failed"
"""Reason of a session that is Ready because it could not be suspended; `message` says why."""

WAKE_FAILED = "wake_failed"
"""Reason of a session that is Paused again because it could not be woken; `message` says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChange:
    """A phase that a session came to, when and why. `seq` counts its changes from 1, without gaps."""

    seq: int
    phase: Phase
    at: datetime
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Who acts on a session's sandbox, until when unless it is renewed. `owner` is one process's one start."""

    owner: str
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session, fixed at creation from template and request, changed only by compare-and-swap.

    `revision` counts changes, from 1. `last_activity_at` is what the store knows; it never moves
    backwards. `due_at` orders the deadline queue (None: nothing will ever be due). `routes` are the
    template's ports as they were at creation; empty when invocations go to PicoD. `exposed` are the ports
    that were exposed since, each with the key that share links of it must carry. `history` are its
    latest phase changes, oldest first, as far as it is on record. Times are aware and UTC.

    `hold`: the manager that acts on it; nobody while it rests. `attempt` counts the starts of a sandbox
    for it, each of which makes one of its own. `keyed`: an idempotency key stands for it; `joined`: a retry
    by that key has asked for it, too. `answer_by`: nobody may have learnt of it, and it is deleted then
    unless a retry comes.
    """

    id: SessionId
    template: TemplateKey
    generation: int
    owner: str
    phase: Phase
    created_at: datetime
    last_activity_at: datetime
    expires_at: datetime
    idle_timeout: timedelta
    suspend_after: timedelta | None = None
    auth_mode: AuthMode = AuthMode.PICOD
    reason: str = ""
    message: str = ""
    state_lost: bool = False
    from_pool: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    resources: Resources | None = None
    routes: tuple[Port, ...] = ()
    exposed: Mapping[int, str] = field(default_factory=dict)
    sandbox: Sandbox | None = None
    due_at: datetime | None = None
    history: tuple[PhaseChange, ...] = ()
    hold: Hold | None = None
    attempt: int = 1
    keyed: bool = False
    joined: bool = False
    answer_by: datetime | None = None
    revision: int = 1

    @property
    def phase_since(self) -> datetime:
        """When it came to its phase."""
        return self.history[-1].at if self.history else self.created_at

    def advanced(self, trigger: Trigger, *, reason: str = "", message: str = "") -> Session:
        """This session after `trigger`, with its deadline set anew. Raises InvalidTransition."""
        moved = replace(self, phase=advance(self.phase, trigger), reason=reason, message=message)
        return moved.rearmed()

    def rearmed(self) -> Session:
        """This session with `due_at` computed from its phase, timeouts and last activity."""
        return replace(self, due_at=next_deadline(self))

    def chronicled(self, now: datetime, *, hold: Hold | None = None) -> Session:
        """This session with its phase in its history, as of `now` if it is news, held by `hold`."""
        last = self.history[-1] if self.history else None
        if last is not None and last.phase is self.phase:
            return self if hold is self.hold else replace(self, hold=hold)
        change = PhaseChange(
            seq=last.seq + 1 if last else 1,
            phase=self.phase,
            at=now,
            reason=self.reason,
            message=self.message,
        )
        return replace(self, history=(*self.history, change)[-HISTORY_MAX:], hold=hold)


def idle_deadline(session: Session) -> datetime:
    """When `session` has been idle for its `idle_timeout`, for all that can be known then."""
    return session.last_activity_at + session.idle_timeout + ACTIVITY_LAG


def sleep_deadline(session: Session) -> datetime | None:
    """When `session`, if it is Ready and stays unused, is to be suspended; None: never."""
    if session.suspend_after is None:
        return None
    due = max(session.last_activity_at, session.phase_since) + session.suspend_after + ACTIVITY_LAG
    return max(due, session.phase_since + SUSPEND_RETRY) if session.reason == SUSPEND_FAILED else due


def was_used(session: Session, now: datetime) -> bool:
    """Whether a suspension of `session` that began because it was idle is off."""
    after = session.suspend_after
    return after is None or now < session.last_activity_at + after + ACTIVITY_LAG


def next_deadline(session: Session) -> datetime | None:
    """The earliest time at which something may be due for `session`; None once it is Deleted.

    Of one that somebody acts on, the end of the hold: the holder may have died.
    """
    if session.phase is Phase.DELETED:
        return None
    if session.hold is not None:
        return session.hold.until
    if session.phase is Phase.DELETING:
        return session.created_at  # at once: whoever looks next goes on destroying
    due = [session.expires_at]
    if session.answer_by is not None:
        due.append(session.answer_by)
    if session.phase in IDLE:
        due.append(idle_deadline(session))
    asleep = sleep_deadline(session) if session.phase is Phase.READY else None
    return min(due if asleep is None else [*due, asleep])


def is_acted_on(session: Session) -> bool:
    """Whether something is to be done to its sandbox now: whoever does it holds it."""
    return session.phase in MOVING or (session.phase is Phase.FAILED and session.sandbox is not None)


def is_live(session: Session) -> bool:
    """Whether the session can still serve or come to serve a request."""
    return session.phase in LIVE
