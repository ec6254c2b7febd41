"""The records of an embedded store and the rules for changing them: pure, synchronous, no I/O.

A method named after one of the port checks a request against the tables and returns an `Outcome`:
the answer and the changes that make it true. Nothing changes before `apply`, so that a store can
write the changes to disk in between. Times are arguments.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Generic, Literal, TypeVar, assert_never

from agentcube.errors import (
    AgentCubeError,
    AlreadyExists,
    CapacityExhausted,
    Conflict,
    LimitExceeded,
    SessionNotFound,
    StaleRevision,
    TemplateNotFound,
)
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.session import Session
from agentcube.model.template import Template, TemplateKey
from agentcube.ports.store import UNBOUNDED, KeyTaken, Quota, Reservation


@dataclass(frozen=True, slots=True)
class PutSession:
    """The session is now this."""

    session: Session


@dataclass(frozen=True, slots=True)
class DropSession:
    """The session is forgotten."""

    id: SessionId


@dataclass(frozen=True, slots=True)
class PutWarm:
    """The pool entry is now this."""

    entry: WarmSandbox


@dataclass(frozen=True, slots=True)
class DropWarm:
    """The pool entry is gone: claimed or removed."""

    id: SandboxId


@dataclass(frozen=True, slots=True)
class PutTemplate:
    """The template is now this."""

    template: Template


@dataclass(frozen=True, slots=True)
class DropTemplate:
    """The template is gone; the generation it had is remembered, so that no later one repeats it."""

    key: TemplateKey
    generation: int


@dataclass(frozen=True, slots=True)
class PutReservation:
    """The idempotency key stands for this session."""

    reservation: Reservation


@dataclass(frozen=True, slots=True)
class DropReservation:
    """The idempotency key has expired."""

    key: str


Change = (
    PutSession
    | DropSession
    | PutWarm
    | DropWarm
    | PutTemplate
    | DropTemplate
    | PutReservation
    | DropReservation
)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """What an operation answers once `changes` are as durable as the store can make them."""

    answer: R
    changes: tuple[Change, ...] = ()


Operation = Callable[["Tables"], Outcome[R]]


class Tables:
    """All records, by key. Read the dicts; change them only by `apply` and `touch`."""

    def __init__(self) -> None:
        self.sessions: dict[SessionId, Session] = {}
        self.bound: dict[SandboxId, SessionId] = {}  # which session has the sandbox
        self.warm: dict[SandboxId, WarmSandbox] = {}
        self.templates: dict[TemplateKey, Template] = {}
        self.generations: dict[TemplateKey, int] = {}
        self.reservations: dict[str, Reservation] = {}
        self._owners: Counter[str] = Counter()  # how many sessions each has
        self._expiries: list[tuple[datetime, str]] = []  # heap; stale rows are skipped when met

    # What readers ask

    def session(self, id: SessionId) -> Session:
        """The session. Raises SessionNotFound."""
        try:
            return self.sessions[id]
        except KeyError:
            raise SessionNotFound(f"there is no session {id}", session=id) from None

    def template(self, key: TemplateKey) -> Template:
        """The template. Raises TemplateNotFound."""
        try:
            return self.templates[key]
        except KeyError:
            raise TemplateNotFound(f"there is no {key}") from None

    # What writers ask

    def insert(
        self, session: Session, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Outcome[Session]:
        """A new session at revision 1. Raises KeyTaken, AlreadyExists, CapacityExhausted, LimitExceeded."""
        self._must_be_allowed(session, quota, reservation)
        stored = replace(session, revision=1)
        return Outcome(stored, (PutSession(stored), *self._reserved(reservation, session.created_at)))

    def replace(self, session: Session) -> Outcome[Session]:
        """Compare-and-swap. Raises SessionNotFound, StaleRevision."""
        known = self.session(session.id)
        _same_revision(known, session.revision)
        stored = replace(_no_older(session, known), revision=known.revision + 1)
        return Outcome(stored, (PutSession(stored),))

    def delete(self, id: SessionId, revision: int) -> Outcome[None]:
        """Forget the session if it is there. Raises StaleRevision."""
        known = self.sessions.get(id)
        if known is None:
            return Outcome(None)
        _same_revision(known, revision)
        return Outcome(None, (DropSession(id),))

    def claim_warm(
        self, session: Session, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Outcome[Session | None]:
        """Move the oldest fitting entry's sandbox into a new session. Raises as `insert` does."""
        self._must_be_allowed(session, quota, reservation)
        fitting = [
            e
            for e in self.warm.values()
            if e.template == session.template
            and e.generation == session.generation
            and e.state is WarmState.READY
        ]
        if not fitting:
            return Outcome(None)
        entry = min(fitting, key=lambda e: (e.created_at, e.id))
        stored = replace(session, sandbox=entry.sandbox, from_pool=True, revision=1)
        kept = self._reserved(reservation, session.created_at)
        return Outcome(stored, (DropWarm(entry.id), PutSession(stored), *kept))

    def put_warm(self, entry: WarmSandbox) -> Outcome[None]:
        """Insert or update a pool entry. Raises Conflict when a session has its sandbox."""
        assert (entry.sandbox is None) == (entry.state is WarmState.STARTING), entry
        if entry.id in self.bound:
            raise Conflict(f"sandbox {entry.id} belongs to a session", sandbox=entry.id)
        return Outcome(None, (PutWarm(entry),))

    def update_warm(self, entry: WarmSandbox) -> Outcome[bool]:
        """Update an entry that is there; False when it is not."""
        if entry.id not in self.warm:
            return Outcome(False)
        return Outcome(True, self.put_warm(entry).changes)

    def remove_warm(self, id: SandboxId) -> Outcome[bool]:
        """Take an entry out; False when it was not there."""
        if id not in self.warm:
            return Outcome(False)
        return Outcome(True, (DropWarm(id),))

    def put_template(self, template: Template) -> Outcome[Template]:
        """Store a template; its generation grows when anything differs from what is stored."""
        known = self.templates.get(template.key)
        if known is not None and replace(template, generation=known.generation) == known:
            return Outcome(known)
        stored = replace(template, generation=self.generations.get(template.key, 0) + 1)
        return Outcome(stored, (PutTemplate(stored),))

    def delete_template(self, key: TemplateKey) -> Outcome[None]:
        """Forget a template. Raises TemplateNotFound."""
        return Outcome(None, (DropTemplate(key, self.template(key).generation),))

    # How they change

    def apply(self, changes: Iterable[Change]) -> None:
        """Make `changes` true. A session's last activity never moves backwards."""
        for change in changes:
            self._apply(change)

    def touch(self, activity: Mapping[SessionId, datetime]) -> dict[SessionId, datetime]:
        """Note activity; returns what was news."""
        news = {}
        for id, at in activity.items():
            session = self.sessions.get(id)
            if session is not None and at > session.last_activity_at:
                self.sessions[id] = replace(session, last_activity_at=at)
                news[id] = at
        return news

    def _apply(self, change: Change) -> None:
        match change:
            case PutSession(session):
                known = self.sessions.get(session.id)
                self._forget(known)
                self._owners[session.owner] += 1
                self.sessions[session.id] = session if known is None else _no_older(session, known)
                if session.sandbox is not None:
                    self.bound[session.sandbox.id] = session.id
            case DropSession(id):
                self._forget(self.sessions.pop(id, None))
            case PutWarm(entry):
                self.warm[entry.id] = entry
            case DropWarm(id):
                self.warm.pop(id, None)
            case PutTemplate(template):
                self.templates[template.key] = template
                self.generations[template.key] = template.generation
            case DropTemplate(key, generation):
                self.templates.pop(key, None)
                self.generations[key] = generation
            case PutReservation(reservation):
                self.reservations[reservation.key] = reservation
                heapq.heappush(self._expiries, (reservation.expires_at, reservation.key))
            case DropReservation(key):
                self.reservations.pop(key, None)
            case _:
                assert_never(change)

    def _forget(self, session: Session | None) -> None:
        if session is None:
            return
        self._owners[session.owner] -= 1
        if not self._owners[session.owner]:
            del self._owners[session.owner]
        if session.sandbox is not None:
            self.bound.pop(session.sandbox.id, None)

    def _reserved(self, reservation: Reservation | None, now: datetime) -> tuple[Change, ...]:
        """What puts the reservation, and drops expired ones."""
        if reservation is None:
            return ()
        expired = (DropReservation(key) for key in self._expired(now) if key != reservation.key)
        return (*expired, PutReservation(reservation))

    def _expired(self, now: datetime) -> list[str]:
        keys = []
        while self._expiries and self._expiries[0][0] <= now:
            at, key = heapq.heappop(self._expiries)
            known = self.reservations.get(key)
            if known is not None and known.expires_at == at:
                keys.append(key)
        return keys

    def _must_be_allowed(self, session: Session, quota: Quota, reservation: Reservation | None) -> None:
        known = None if reservation is None else self.reservations.get(reservation.key)
        if known is not None and known.expires_at > session.created_at:
            raise KeyTaken(known)
        if session.id in self.sessions:
            raise AlreadyExists(f"session {session.id} exists", session=session.id)
        if quota.total is not None and len(self.sessions) >= quota.total:
            raise used_up("total", quota)
        if quota.owner is not None and self._owners[session.owner] >= quota.owner:
            raise used_up("owner", quota)


def used_up(bound: Literal["total", "owner"], quota: Quota) -> AgentCubeError:
    """What a new session hears that would break a bound of the quota."""
    if bound == "total":
        return CapacityExhausted(f"there are {quota.total} sessions, and no more may be; try again later")
    return LimitExceeded(f"you have {quota.owner} sessions, as many as you may; delete some first")


def _same_revision(known: Session, revision: int) -> None:
    if known.revision != revision:
        raise StaleRevision(
            f"session {known.id} is at revision {known.revision}, not {revision}; read it again",
            session=known.id,
            revision=known.revision,
        )


def _no_older(session: Session, known: Session) -> Session:
    """`session`, active no earlier than `known` was."""
    if session.last_activity_at >= known.last_activity_at:
        return session
    return replace(session, last_activity_at=known.last_activity_at)
