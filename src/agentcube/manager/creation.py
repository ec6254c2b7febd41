"""The making of sessions: accepted, started, told of; and what becomes of those whose client left.

Knows no HTTP. It stores what is wanted and has the reconciler look; it never acts on a sandbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
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
    SessionFailed,
    SessionNotFound,
    StartTimedOut,
    Unavailable,
)
from agentcube.manager.admission import Admission
from agentcube.manager.pools import Pools
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.records import Edit, Records
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId, new_session_id
from agentcube.model.lifecycle import LIVE, Phase, Trigger
from agentcube.model.session import Session
from agentcube.model.template import Template, TemplateKey
from agentcube.ports.clock import Clock
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import KeyTaken, Quota, Reservation
from agentcube.ports.tokens import Subject

log = structlog.get_logger(__name__)

_KEY_KEPT = timedelta(hours=24)
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


class Creations:
    """Creates sessions, once for each idempotency key."""

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

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        repeat = None
        if key:  # the request's body goes to the sandbox, which sees by the same key whether it is the same
            scope = json.dumps(["first request", subject.name, *template, key])
            repeat = Repeatable(hashlib.sha256(scope.encode()).hexdigest(), "")
        return await self.create(Wish(template=template), subject, repeat)

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
            session = self._new(template, wish, subject, keyed=repeat is not None)
            alone = True  # nobody but this caller is waiting for the session
            try:
                try:
                    session = await self._accept(session, template, repeat)
                except KeyTaken as taken:
                    session, alone = await self._again(taken.reservation, repeat)
                ready = await self._started(session)
            except asyncio.CancelledError:
                if alone:
                    self._abandon(session)
                raise
            finally:
                self._pools.wake()  # only now: a refill would have taken processor time from this start
        if ready.phase is Phase.READY:
            self._pools.note_wait(wish.template, asyncio.get_running_loop().time() - begun)
        return ready

    def _new(self, template: Template, wish: Wish, subject: Subject, *, keyed: bool) -> Session:
        now = self._clock.now()
        ttl = wish.ttl or template.max_session_duration
        if wish.bounded:
            ttl = min(ttl, template.max_session_duration)
        check_ttl(ttl, template)
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
            keyed=keyed,
        )

    async def _accept(self, session: Session, template: Template, repeat: Repeatable | None) -> Session:
        """Put the session on record: with a warm sandbox if there is one, else to be started cold.

        Raises KeyTaken when its key stands for another.
        """
        quota = Quota(total=self._settings.sessions_max, owner=self._settings.sessions_per_owner_max)
        kept = None
        if repeat is not None:
            kept = Reservation(
                key=repeat.key,
                fingerprint=repeat.fingerprint,
                session_id=session.id,
                expires_at=session.created_at + _KEY_KEPT,
            )
        if _fits_pool(session, template):
            warm = replace(session, phase=Phase.RUNNING)
            claimed = await self._records.claim(warm, quota=quota, reservation=kept)
            self._pools.note(template.key, claimed=claimed is not None)
            if claimed is not None:
                return claimed
        return await self._records.insert(session, quota=quota, reservation=kept)

    async def _again(self, taken: Reservation, repeat: Repeatable | None) -> tuple[Session, bool]:
        """The session that an earlier call of the key made, and whether its caller has left. Raises Conflict."""
        if repeat is None or taken.fingerprint != repeat.fingerprint:
            raise Conflict("this Idempotency-Key was used with another body; use a new key")
        ended = Conflict("the session that this Idempotency-Key made has ended; use a new key")
        left = False

        def join(now: Session) -> Session | None:
            nonlocal left
            if now.phase in (Phase.DELETING, Phase.DELETED):
                raise ended
            left = now.answer_by is not None
            return None if now.joined and not left else replace(now, joined=True, answer_by=None)

        try:
            return await self._records.change(taken.session_id, join), left
        except SessionNotFound:
            raise ended from None

    async def _started(self, session: Session) -> Session:
        """Wait until the session is Ready or Failed, for at most the time a start may take."""
        try:
            async with asyncio.timeout(self._settings.start_timeout_s):
                session = await self._settled(session.id)
                if session.phase is Phase.FAILED and session.from_pool:
                    session = await self._cold_instead(session)
        except TimeoutError:
            late = session
            self._reconciler.spawn(lambda: self._drop_late(late), name="drop late session")
            raise StartTimedOut(
                f"the session was not ready within {self._settings.start_timeout_s:g} s; it is deleted"
            ) from None
        match session.phase:
            case Phase.READY | Phase.PAUSING | Phase.PAUSED | Phase.RESUMING:
                return await self._answering(session)
            case Phase.FAILED if session.reason in _REFUSED:
                reason = session.reason
                await self._drop(session.id, lambda now: deleting(now, reason))
                raise failure_of(session)
            case Phase.FAILED:
                return await self._answering(session)
            case Phase.DELETING | Phase.DELETED:
                raise SessionFailed("the session was deleted while it started", session=session.id)
            case _:
                raise Unavailable("the session's start was interrupted; try again", session=session.id)

    async def _answering(self, session: Session) -> Session:
        """The session, which its client is about to be told of: another manager that took us for dead, and the
        client for gone, must not end it. Raises Unavailable when it has done so.
        """

        def answered(now: Session) -> Session | None:
            if now.phase in (Phase.DELETING, Phase.DELETED):
                raise interrupted
            return None if now.answer_by is None else replace(now, answer_by=None)

        interrupted = Unavailable("the session's start was interrupted; try again", session=session.id)
        if session.answer_by is None:
            return session
        try:
            return await self._records.change(session.id, answered)
        except SessionNotFound:
            raise interrupted from None

    async def _settled(self, id: SessionId) -> Session:
        await self._reconciler.settle(id)
        try:
            return await self._store.get(id)
        except SessionNotFound:
            raise SessionFailed("the session was deleted while it started", session=id) from None

    async def _cold_instead(self, failed: Session) -> Session:
        """The warm sandbox was no good: the same session, which nobody knows yet, from a cold start.

        It stays Failed when it still has that sandbox; for ever, as its client is told so.
        """
        log.warning("warm sandbox unusable, starting cold", session=failed.id, reason=failed.reason)

        def anew(now: Session) -> Session | None:
            if now.phase is not Phase.FAILED or not now.from_pool:
                return None  # somebody else who waits for it has done so
            if now.sandbox is not None:  # it could not even be destroyed
                return replace(now, from_pool=False)
            return replace(now, phase=Phase.PENDING, reason="", message="", from_pool=False)

        session = await self._records.change(failed.id, anew)
        return session if session.phase is Phase.FAILED else await self._settled(failed.id)

    def _abandon(self, session: Session) -> None:
        """The caller left before it had its answer."""
        work = self._await_retry if session.keyed else self._forsake
        self._reconciler.spawn(lambda: work(session), name="abandoned session")

    async def _forsake(self, session: Session) -> None:
        await self._drop(session.id, lambda now: deleting(now, "abandoned"))

    async def _await_retry(self, session: Session) -> None:
        answer_by = self._clock.now() + timedelta(seconds=self._settings.abandoned_s)

        def left(now: Session) -> Session | None:
            joined = now.joined and not session.joined  # by somebody who still waits, or was told
            if joined or now.answer_by is not None or now.phase not in LIVE:
                return None
            return replace(now, answer_by=answer_by)

        await self._records.change(session.id, left)

    async def _drop_late(self, session: Session) -> None:
        """It was not ready in time for this caller. Another one of its key may still wait, or have been told."""

        def unless_anothers(now: Session) -> Session | None:
            started = now.phase not in (Phase.PENDING, Phase.RUNNING)
            another = now.joined and (started or not session.joined)
            return None if another else deleting(now, "start_timed_out")

        await self._drop(session.id, unless_anothers)

    async def _drop(self, id: SessionId, edit: Edit) -> None:
        try:
            await self._records.change(id, edit)
        except SessionNotFound:
            return
        await self._reconciler.settle(id, interrupt=True)


def failure_of(session: Session) -> AgentCubeError:
    """A Failed session as the error that its reason stands for."""
    kind = BY_CODE.get(session.reason, SessionFailed)
    return kind(session.message or f"the session failed: {session.reason}", session=session.id)


def _fits_pool(session: Session, template: Template) -> bool:
    """Whether a warm sandbox can be this session's: not with its own limits, nor with an environment
    that the template's command, running since the pool was filled, never saw.
    """
    return session.resources is None and not (session.env and template.command)


def check_ttl(ttl: timedelta, template: Template) -> None:
    """Raises Invalid for a lifetime beyond the template's maximum."""
    most = template.max_session_duration
    if ttl > most:
        raise Invalid(
            f"ttl {format_duration(ttl.total_seconds())} is longer than {template.key} allows: its "
            f"maxSessionDuration is {format_duration(most.total_seconds())}"
        )


def deleting(session: Session, reason: str) -> Session | None:
    """The session, ending; None when it does already."""
    if session.phase in (Phase.DELETING, Phase.DELETED):
        return None
    return session.advanced(Trigger.DELETE, reason=reason)
