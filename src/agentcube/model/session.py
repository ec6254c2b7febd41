"""A session: what a client holds, and when something may next be due for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import IDLE, LIVE, Phase, Trigger, advance
from agentcube.model.sandbox import Port, Resources, Sandbox
from agentcube.model.template import AuthMode, TemplateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One session, fixed at creation from template and request, changed only by compare-and-swap.

    `revision` counts changes, from 1. `last_activity_at` is what the store knows; it never moves
    backwards. `due_at` orders the deadline queue (None: nothing will ever be due). `routes` are the
    template's ports as they were at creation; empty when invocations go to PicoD. Times are aware and UTC.
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
    sandbox: Sandbox | None = None
    due_at: datetime | None = None
    revision: int = 1

    def advanced(self, trigger: Trigger, *, reason: str = "", message: str = "") -> Session:
        """This session after `trigger`, with its deadline set anew. Raises InvalidTransition."""
        moved = replace(self, phase=advance(self.phase, trigger), reason=reason, message=message)
        return moved.rearmed()

    def rearmed(self) -> Session:
        """This session with `due_at` computed from its phase, timeouts and last activity."""
        return replace(self, due_at=next_deadline(self))

    def idle_s(self, now: datetime) -> float:
        """Seconds since the last activity; never negative."""
        return max(0.0, (now - self.last_activity_at).total_seconds())


def next_deadline(session: Session) -> datetime | None:
    """The earliest time at which something may be due for `session`; None once it is Deleted."""
    if session.phase is Phase.DELETED:
        return None
    if session.phase is Phase.DELETING:
        return session.created_at  # at once: whoever looks next goes on destroying
    due = [session.expires_at]
    if session.phase in IDLE:
        due.append(session.last_activity_at + session.idle_timeout)
    if session.phase is Phase.READY and session.suspend_after is not None:
        due.append(session.last_activity_at + session.suspend_after)
    return min(due)


def is_live(session: Session) -> bool:
    """Whether the session can still serve or come to serve a request."""
    return session.phase in LIVE
