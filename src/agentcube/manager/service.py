"""The manager's use cases for sessions; implements `ports.control.ControlPlane`.

Knows no HTTP. It stores what is wanted and has the reconciler look; it never acts on a sandbox.
Somebody else's session is as absent as one that never was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from agentcube.errors import (
    AgentCubeError,
    Invalid,
    InvalidTransition,
    SessionBusy,
    SessionNotFound,
    StartTimedOut,
    SuspendFailed,
    SuspendUnsupported,
    TemplateNotFound,
    Unavailable,
    WakeFailed,
)
from agentcube.manager.creation import Creations, check_ttl, deleting, failure_of
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import ASLEEP, LIVE, Phase, Trigger
from agentcube.model.session import ASKED, SUSPEND_FAILED, WAKE_FAILED, Session
from agentcube.ports.driver import Usage
from agentcube.ports.store import Page, SessionQuery
from agentcube.ports.tokens import Subject

log = structlog.get_logger(__name__)

_METADATA_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to change of a session; None leaves it. In `metadata`, None removes the key."""

    ttl: timedelta | None = None
    idle_timeout: timedelta | None = None
    suspend_after: timedelta | None = None
    never_suspend: bool = False
    metadata: Mapping[str, str | None] = field(default_factory=dict)


class Sessions(Creations):
    """Creates, finds, changes, suspends, wakes and deletes sessions."""

    async def get(self, id: SessionId, subject: Subject) -> Session:
        """The caller's session. Raises SessionNotFound, also for somebody else's."""
        return _own(await self._store.get(id), subject)

    async def usage(self, session: Session) -> Usage | None:
        """What the session's sandbox uses now; None when it has none or cannot be asked."""
        if session.sandbox is None or session.phase not in LIVE:
            return None
        try:
            return await self._driver.usage(session.sandbox)
        except AgentCubeError:
            return None

    async def list(self, query: SessionQuery, subject: Subject) -> Page:
        """The caller's sessions; an admin's are everybody's."""
        return await self._store.list(query if subject.admin else replace(query, owner=subject.name))

    async def change(self, id: SessionId, changes: Changes, subject: Subject) -> Session:
        """Change timeouts and metadata; a lifetime that is over already ends the session.

        Raises SessionNotFound, Invalid, InvalidTransition.
        """
        session = await self.get(id, subject)
        if changes.ttl is not None:
            try:
                check_ttl(changes.ttl, await self._store.get_template(session.template))
            except TemplateNotFound:
                pass  # whoever deleted it took its bounds away too
        return await self._records.change(id, lambda now: _changed(now, changes))

    async def delete(self, id: SessionId, subject: Subject) -> None:
        """End the session; returns when it is gone, or certain to go. Raises SessionNotFound."""
        await self.get(id, subject)
        await self._records.change(id, lambda now: deleting(now, "deleted"))
        try:
            async with asyncio.timeout(self._settings.delete_wait_s):
                await self._reconciler.settle(id, interrupt=True)
        except (TimeoutError, AgentCubeError) as exc:
            # The wish is on record, so it will be done: by the next pass, or by the next start.
            log.info("deletion goes on", session=id, why=type(exc).__name__)

    async def suspend(self, id: SessionId, subject: Subject) -> Session:
        """Put the session to sleep now, however recently it was used; one that sleeps already is left so.

        Raises SessionNotFound, SuspendUnsupported, SuspendFailed, SessionBusy (a request came or was under
        way: it is awake), InvalidTransition (it has not started, or has failed).
        """
        session = await self.get(id, subject)
        if not self._records.can_suspend:
            raise SuspendUnsupported(self._records.cannot_suspend, session=id)
        if session.phase is Phase.RESUMING:
            await self._settle_within(session)
        session = await self._records.change(id, _pausing)
        await self._settle_within(session)
        session = await self._awaited(id)
        if session.phase is Phase.PAUSED:
            return session
        if session.reason == SUSPEND_FAILED:
            raise SuspendFailed(session.message, session=id)
        raise SessionBusy("a request of the session came or was under way, so it is awake", session=id)

    async def resume(self, id: SessionId, subject: Subject) -> Session:
        """Wake the session; one that is awake is left so. Raises as `wake`."""
        await self.get(id, subject)
        return await self.wake(id, reason=ASKED)

    async def wake(self, id: SessionId, *, reason: str = "request") -> Session:
        for _ in range(3):  # a session that goes to sleep meanwhile is woken again, not for ever
            before = await self._awaited(id)
            if before.phase is Phase.READY:
                return before
            interrupt = False
            if before.phase in ASLEEP:
                now = await self._records.change(id, lambda now: _resuming(now, reason))
                # A suspension under way is given up; what it has done so far, the resume undoes.
                interrupt = before.phase is Phase.PAUSING and now.phase is Phase.RESUMING
            await self._settle_within(before, interrupt=interrupt)
            session = await self._awaited(id)
            if (
                session.phase is Phase.PAUSED
                and session.reason == WAKE_FAILED
                and session.revision != before.revision
            ):
                raise WakeFailed(session.message, session=id)
        if session.phase is Phase.READY:
            return session
        raise Unavailable(f"session {id} is {session.phase}", session=id)

    async def _settle_within(self, session: Session, *, interrupt: bool = False) -> None:
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                await self._reconciler.settle(session.id, interrupt=interrupt)
        except TimeoutError:
            late = StartTimedOut if session.phase in (Phase.PENDING, Phase.RUNNING) else WakeFailed
            raise late(f"session {session.id} is {session.phase} for too long", session=session.id) from None

    async def _awaited(self, id: SessionId) -> Session:
        """The session, if it can come to serve requests. Raises SessionNotFound, or why it cannot."""
        session = await self._store.get(id)
        if session.phase is Phase.FAILED:
            raise failure_of(session)
        if session.phase in (Phase.DELETING, Phase.DELETED):
            raise SessionNotFound(f"session {id} has ended")
        return session

    def stays_awake(self, session: Session) -> str | None:
        """Why the session does not sleep although it was told when to; None when it does, or was not."""
        if session.suspend_after is None or session.phase not in LIVE:
            return None
        if not self._records.can_suspend:
            return self._records.cannot_suspend
        return session.message if session.reason == SUSPEND_FAILED else None

    async def suspect(self, id: SessionId) -> Session:
        await self._reconciler.settle(id)
        return await self._store.get(id)


def _own(session: Session, subject: Subject) -> Session:
    if session.owner != subject.name and not subject.admin:
        raise SessionNotFound(f"there is no session {session.id}", session=session.id)
    return session


def _pausing(session: Session) -> Session | None:
    if session.phase is Phase.PAUSING and session.reason != ASKED:
        return replace(session, reason=ASKED)
    if session.phase in (Phase.PAUSING, Phase.PAUSED, Phase.RESUMING):
        return None
    if session.phase in (Phase.DELETING, Phase.DELETED):
        raise SessionNotFound(f"session {session.id} has ended")
    return session.advanced(Trigger.SUSPEND, reason=ASKED)


def _resuming(session: Session, reason: str) -> Session | None:
    return session.advanced(Trigger.RESUME, reason=reason) if session.phase in ASLEEP else None


def _changed(session: Session, changes: Changes) -> Session:
    if session.phase not in LIVE:
        raise InvalidTransition(f"a session that is {session.phase} cannot be changed", session=session.id)
    expires_at = session.expires_at if changes.ttl is None else session.created_at + changes.ttl
    metadata = {**session.metadata, **changes.metadata}
    kept = {key: value for key, value in metadata.items() if value is not None}
    if len(kept) > _METADATA_MAX:
        raise Invalid(f"metadata has at most {_METADATA_MAX} entries")
    suspend_after = changes.suspend_after or session.suspend_after
    return replace(
        session,
        expires_at=expires_at,
        idle_timeout=changes.idle_timeout or session.idle_timeout,
        suspend_after=None if changes.never_suspend else suspend_after,
        metadata=kept,
    )
