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

from agentcube.durations import format_duration
from agentcube.errors import (
    BY_CODE,
    AgentCubeError,
    Conflict,
    Invalid,
    InvalidTransition,
    SessionFailed,
    SessionNotFound,
    StartTimedOut,
    TemplateNotFound,
    Unavailable,
)
from agentcube.manager.admission import Admission
from agentcube.manager.locks import KeyedLocks
from agentcube.manager.pools import Pools
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.records import Records
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId, new_session_id
from agentcube.model.lifecycle import LIVE, Phase, Trigger
from agentcube.model.session import Session
from agentcube.model.template import Template, TemplateKey
from agentcube.ports.clock import Clock
from agentcube.ports.driver import SandboxDriver, Usage
from agentcube.ports.store import Page, Reservation, SessionQuery
from agentcube.ports.tokens import Subject

log = structlog.get_logger(__name__)

_KEY_KEPT = timedelta(hours=24)
_METADATA_MAX = 64
_REFUSED = frozenset({"capacity_exhausted", "invalid", "template_not_found"})
"""Reasons with which a driver refuses before anything was made: there is nothing to look at afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a new session shall be. None: as the template says.

    `bounded`: a lifetime beyond the template's maximum is cut to it; otherwise it is refused.
    """

    template: TemplateKey
    ttl: timedelta | None = None
    bounded: bool = False
    idle_timeout: timedelta | None = None
    suspend_after: timedelta | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    resources: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Repeatable:
    """An idempotency key, already scoped to caller and route, and a hash of the request's body."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to change of a session; None leaves it. In `metadata`, None removes the key."""

    ttl: timedelta | None = None
    idle_timeout: timedelta | None = None
    suspend_after: timedelta | None = None
    never_suspend: bool = False
    metadata: Mapping[str, str | None] = field(default_factory=dict)


class Sessions:
    """Creates, finds, changes, wakes and deletes sessions."""

    def __init__(
        self,
        settings: ManagerSettings,
        records: Records,
        driver: SandboxDriver,
        reconciler: Reconciler,
        pools: Pools,
        admission: Admission,
        clock: Clock,
    ) -> None:
        self._settings = settings
        self._records = records
        self._store = records.store
        self._driver = driver
        self._reconciler = reconciler
        self._pools = pools
        self._admission = admission
        self._clock = clock
        self._keys = KeyedLocks()
        self._unanswered: set[SessionId] = set()

    @property
    def unanswered(self) -> int:
        """Sessions whose client left before the answer and that wait for its retry."""
        return len(self._unanswered)

    # Creation

    async def create_for(self, template: TemplateKey, subject: Subject) -> Session:
        return await self.create(Wish(template=template), subject)

    async def create(self, wish: Wish, subject: Subject, repeat: Repeatable | None = None) -> Session:
        """A new session, Ready or Failed; with `repeat`, the one that an earlier call of that key made.

        A caller that is cancelled leaves nothing behind: its session is deleted, at once or, with
        `repeat`, when no retry has come for `abandoned_s`.

        Raises: TemplateNotFound, Invalid, Conflict (the key, with another body), CapacityExhausted,
        LimitExceeded, StartTimedOut, Unavailable.
        """
        begun = asyncio.get_running_loop().time()
        async with self._admission.creating():
            template = await self._store.get_template(wish.template)
            session = self._new(template, wish, subject)
            unanswered = True  # whether anybody but this caller may be waiting for the session
            try:
                if repeat is None:
                    session = await self._accept(session, template, subject)
                else:
                    async with self._keys.hold(repeat.key):
                        reserved = await self._reserve(repeat, session.id)
                        if reserved == session.id:
                            session = await self._accept(session, template, subject)
                        else:
                            unanswered = reserved in self._unanswered
                            session = await self._again(reserved)
                ready = await self._started(session)
            except asyncio.CancelledError:
                if unanswered:
                    self._abandon(session.id, keyed=repeat is not None)
                raise
            finally:
                self._pools.wake()  # only now: a refill would have taken processor time from this start
        if ready.phase is Phase.READY:
            self._pools.note_wait(wish.template, asyncio.get_running_loop().time() - begun)
        return ready

    def _new(self, template: Template, wish: Wish, subject: Subject) -> Session:
        now = self._clock.now()
        ttl = wish.ttl or template.max_session_duration
        if wish.bounded:
            ttl = min(ttl, template.max_session_duration)
        _check_ttl(ttl, template)
        return Session(
            id=new_session_id(),
            template=template.key,
            generation=template.generation,
            owner=subject.name,
            phase=Phase.PENDING,
            created_at=now,
            last_activity_at=now,
            expires_at=now + ttl,
            idle_timeout=wish.idle_timeout or template.session_timeout,
            suspend_after=wish.suspend_after or template.suspend_after,
            auth_mode=template.auth_mode,
            metadata=wish.metadata,
            env=wish.env,
            resources=replace(template.resources, **wish.resources) if wish.resources else None,
            routes=template.routes,
        )

    async def _accept(self, session: Session, template: Template, subject: Subject) -> Session:
        """Put the session on record: with a warm sandbox if there is one, else to be started cold."""
        self._admission.admit(session.id, subject)
        try:
            if _fits_pool(session, template):
                claimed = await self._records.claim(replace(session, phase=Phase.RUNNING))
                self._pools.note(template.key, claimed=claimed is not None)
                if claimed is not None:
                    return claimed
            return await self._records.insert(session)
        except AgentCubeError:
            self._admission.forget(session.id)
            raise

    async def _reserve(self, repeat: Repeatable, id: SessionId) -> SessionId:
        now = self._clock.now()
        wanted = Reservation(
            key=repeat.key, fingerprint=repeat.fingerprint, session_id=id, expires_at=now + _KEY_KEPT
        )
        held = await self._store.reserve(wanted, now=now)
        if held.fingerprint != repeat.fingerprint:
            raise Conflict("this Idempotency-Key was used with another body; use a new key")
        return held.session_id

    async def _again(self, id: SessionId) -> Session:
        self._unanswered.discard(id)
        try:
            session = await self._store.get(id)
        except SessionNotFound:
            session = None
        if session is None or session.phase in (Phase.DELETING, Phase.DELETED):
            raise Conflict("the session that this Idempotency-Key made has ended; use a new key")
        return session

    async def _started(self, session: Session) -> Session:
        """Wait until the session is Ready or Failed, for at most the time a start may take."""
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                session = await self._settled(session.id)
                if session.phase is Phase.FAILED and session.from_pool:
                    session = await self._cold_instead(session)
        except TimeoutError:
            late = session.id
            self._reconciler.spawn(lambda: self._drop(late, "start_timed_out"), name="drop late session")
            raise StartTimedOut(
                f"the session was not ready within {self._settings.start_timeout_s:g} s; it is deleted"
            ) from None
        match session.phase:
            case Phase.READY | Phase.PAUSING | Phase.PAUSED | Phase.RESUMING:
                return session
            case Phase.FAILED if session.reason in _REFUSED:
                await self._drop(session.id, session.reason)
                raise failure_of(session)
            case Phase.FAILED:
                return session
            case Phase.DELETING | Phase.DELETED:
                raise SessionFailed("the session was deleted while it started", session=session.id)
            case _:
                raise Unavailable("the session's start was interrupted; try again", session=session.id)

    async def _settled(self, id: SessionId) -> Session:
        await self._reconciler.settle(id)
        try:
            return await self._store.get(id)
        except SessionNotFound:
            raise SessionFailed("the session was deleted while it started", session=id) from None

    async def _cold_instead(self, failed: Session) -> Session:
        """The warm sandbox was no good: the same session, which nobody knows yet, from a cold start."""
        log.warning("warm sandbox unusable, starting cold", session=failed.id, reason=failed.reason)
        if failed.sandbox is not None:
            return failed  # it could not even be destroyed
        await self._store.delete(failed.id, revision=failed.revision)
        fresh = replace(failed, phase=Phase.PENDING, reason="", message="", from_pool=False)
        await self._records.insert(fresh)
        return await self._settled(failed.id)

    def _abandon(self, id: SessionId, *, keyed: bool) -> None:
        """The caller left before it had its answer."""
        self._unanswered.add(id)
        wait_s = self._settings.abandoned_s if keyed else 0.0
        self._reconciler.spawn(lambda: self._drop_unanswered(id, wait_s), name="drop abandoned session")

    async def _drop_unanswered(self, id: SessionId, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        if id in self._unanswered:
            self._unanswered.discard(id)
            await self._drop(id, "abandoned")

    async def _drop(self, id: SessionId, reason: str) -> None:
        try:
            await self._records.change(id, lambda now: _deleting(now, reason))
        except SessionNotFound:
            return
        await self._reconciler.settle(id, interrupt=True)

    # Everything else

    async def get(self, id: SessionId, subject: Subject) -> Session:
        """The caller's session. Raises SessionNotFound, also for somebody else's."""
        return _own(await self._store.get(id), subject)

    async def usage(self, session: Session) -> Usage | None:
        """What the session's sandbox uses now; None when it has none or cannot be asked."""
        if session.sandbox is None or session.phase is not Phase.READY:
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
                _check_ttl(changes.ttl, await self._store.get_template(session.template))
            except TemplateNotFound:
                pass  # whoever deleted it took its bounds away too
        return await self._records.change(id, lambda now: _changed(now, changes))

    async def delete(self, id: SessionId, subject: Subject) -> None:
        """End the session; returns when it is gone, or certain to go. Raises SessionNotFound."""
        await self.get(id, subject)
        await self._records.change(id, lambda now: _deleting(now, "deleted"))
        try:
            async with asyncio.timeout(self._settings.delete_wait_s):
                await self._reconciler.settle(id, interrupt=True)
        except (TimeoutError, AgentCubeError) as exc:
            # The wish is on record, so it will be done: by the next pass, or by the next start.
            log.info("deletion goes on", session=id, why=type(exc).__name__)

    async def wake(self, id: SessionId) -> Session:
        for _ in range(3):  # a session that goes to sleep meanwhile is woken again, not for ever
            session = await self._store.get(id)
            match session.phase:
                case Phase.READY:
                    return session
                case Phase.FAILED:
                    raise failure_of(session)
                case Phase.DELETING | Phase.DELETED:
                    raise SessionNotFound(f"session {id} has ended")
                case Phase.PAUSED:
                    await self._records.change(id, _resuming)
                case _:
                    pass
            try:
                async with asyncio.timeout(self._settings.start_timeout_s):
                    await self._reconciler.settle(id)
            except TimeoutError:
                raise StartTimedOut(f"session {id} did not wake in time", session=id) from None
        session = await self._store.get(id)
        if session.phase is Phase.READY:
            return session
        raise Unavailable(session.message or f"session {id} is {session.phase}", session=id)

    async def suspect(self, id: SessionId) -> Session:
        await self._reconciler.settle(id)
        return await self._store.get(id)


def failure_of(session: Session) -> AgentCubeError:
    """A Failed session as the error that its reason stands for."""
    kind = BY_CODE.get(session.reason, SessionFailed)
    return kind(session.message or f"the session failed: {session.reason}", session=session.id)


def _own(session: Session, subject: Subject) -> Session:
    if session.owner != subject.name and not subject.admin:
        raise SessionNotFound(f"there is no session {session.id}", session=session.id)
    return session


def _fits_pool(session: Session, template: Template) -> bool:
    """Whether a warm sandbox can be this session's: not with its own limits, nor with an environment
    that the template's command, running since the pool was filled, never saw.
    """
    return session.resources is None and not (session.env and template.command)


def _check_ttl(ttl: timedelta, template: Template) -> None:
    most = template.max_session_duration
    if ttl > most:
        raise Invalid(
            f"ttl {format_duration(ttl.total_seconds())} is longer than {template.key} allows: its "
            f"maxSessionDuration is {format_duration(most.total_seconds())}"
        )


def _deleting(session: Session, reason: str) -> Session | None:
    if session.phase in (Phase.DELETING, Phase.DELETED):
        return None
    return session.advanced(Trigger.DELETE, reason=reason)


def _resuming(session: Session) -> Session | None:
    return session.advanced(Trigger.RESUME) if session.phase is Phase.PAUSED else None


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
