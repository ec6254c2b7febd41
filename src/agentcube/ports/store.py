"""The store port: who remembers sessions, templates and pools, and what is guaranteed about it.

Every method that changes something returns only when the change is as durable as this store can
make it. Readers see only such changes. All methods raise `StoreFailed` when the store is out of
reach or damaged, and then nothing was changed that they could not know of.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmSandbox
from agentcube.model.session import Session
from agentcube.model.template import Kind, Template, TemplateKey


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionQuery:
    """Which sessions to list. None or empty means any. `limit` is 1 to 1000."""

    owner: str | None = None
    kind: Kind | None = None
    namespace: str | None = None
    phase: Phase | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    limit: int = 100
    cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """One page of sessions, oldest first; `cursor` continues after it, None at the end."""

    sessions: tuple[Session, ...]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reservation:
    """Which session an idempotency key stands for. `fingerprint` is a hash of the request's body."""

    key: str
    fingerprint: str
    session_id: SessionId
    expires_at: datetime


class SessionStore(Protocol):
    """Sessions, their deadlines and their activity."""

    async def get(self, id: SessionId) -> Session:
        """The session with its newest known `last_activity_at`. Raises SessionNotFound."""
        ...

    def peek(self, id: SessionId) -> Session | None:
        """What this process already knows of the session, without I/O; None is not 'absent'."""
        ...

    async def list(self, query: SessionQuery) -> Page:
        """Matching sessions by creation time. Raises Invalid for a cursor that is not ours."""
        ...

    async def insert(self, session: Session) -> Session:
        """Store a new session at revision 1. Raises AlreadyExists."""
        ...

    async def replace(self, session: Session) -> Session:
        """Compare-and-swap: `session.revision` is the one that was read; returns it grown by one.

        Ends any lease on the session. Raises StaleRevision, or SessionNotFound.
        """
        ...

    async def delete(self, id: SessionId, *, revision: int) -> None:
        """Forget the session. Raises StaleRevision; a session that is absent is no error."""
        ...

    async def lease_due(
        self, *, now: datetime, owner: str, lease: timedelta, limit: int
    ) -> Sequence[Session]:
        """Sessions with `due_at <= now` that nobody else has leased, earliest `due_at` first.

        A lease hides its session from other owners until it ends or the session is replaced; the
        same owner sees it again only after that too. At most `limit`.
        """
        ...

    async def next_due(self) -> datetime | None:
        """The earliest `due_at` of any session, leased or not; None when there is none."""
        ...

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        """Note activity. Never moves a session's time backwards; unknown ids are ignored.

        The one write that may be lost in a crash (up to the flush interval of the embedded store).
        Does not change `revision` or `due_at`.
        """
        ...

    def changes(self) -> AsyncIterator[SessionId | None]:
        """Ids of sessions that changed, as a hint; None means: some were missed, look at all again.

        Subscribed from the call on. Bounded: a slow reader gets None instead of a longer queue.
        """
        ...

    async def reserve(self, reservation: Reservation, *, now: datetime) -> Reservation:
        """Put the reservation, or return the unexpired one that has its key. One atomic step."""
        ...


class PoolStore(Protocol):
    """Warm sandboxes. An entry is in the pool, or bound to exactly one session, never both."""

    async def put_warm(self, entry: WarmSandbox) -> None:
        """Insert or update an entry by id. Raises Conflict when a session already has that sandbox."""
        ...

    async def list_warm(self, template: TemplateKey | None = None) -> Sequence[WarmSandbox]:
        """Entries of one template, or all, oldest first."""
        ...

    async def remove_warm(self, id: SandboxId) -> bool:
        """Take an entry out; False when it was not there (someone claimed or removed it)."""
        ...

    async def claim_warm(self, session: Session) -> Session | None:
        """Bind the oldest READY entry of the session's template and generation, and insert the session.

        One atomic step: the returned session carries the entry's sandbox and `from_pool=True`, is
        stored at revision 1, and the entry is gone. None when there is no such entry: then nothing
        changed. Raises AlreadyExists for the session's id.
        """
        ...


class TemplateStore(Protocol):
    """Templates by key."""

    async def put_template(self, template: Template) -> Template:
        """Store it; its generation becomes 1, or one more than its key's last when anything differs.

        A key's generations never repeat, not even after a delete: sandboxes of a deleted template
        may still be in its pool when another takes its name.
        """
        ...

    async def get_template(self, key: TemplateKey) -> Template:
        """Raises TemplateNotFound."""
        ...

    async def list_templates(
        self, *, kind: Kind | None = None, namespace: str | None = None
    ) -> Sequence[Template]:
        """Templates by namespace and name."""
        ...

    async def delete_template(self, key: TemplateKey) -> None:
        """Raises TemplateNotFound."""
        ...


class Store(SessionStore, PoolStore, TemplateStore, Protocol):
    """All three, from one place, so that a claim can be one step."""

    async def check(self) -> None:
        """Return when the store can be read and written; raises StoreFailed."""
        ...
