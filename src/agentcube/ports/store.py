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


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How many sessions there may be once a new one is added: in all, and of its owner. None: any number."""

    total: int | None = None
    owner: int | None = None


UNBOUNDED = Quota()


class KeyTaken(Exception):
    """The idempotency key of a new session stands for another one already: `reservation` says which."""

    def __init__(self, reservation: Reservation) -> None:
        super().__init__(f"the key stands for session {reservation.session_id}")
        self.reservation = reservation


class SessionTable(Protocol):
    """What a Router needs of a store: sessions by their ids, word of their changes, and a place to note activity."""

    async def get(self, id: SessionId) -> Session:
        """The session with its newest known `last_activity_at`. Raises SessionNotFound."""
        ...

    def peek(self, id: SessionId) -> Session | None:
        """What this process already knows of the session, without I/O; None is not 'absent'.

        Its `last_activity_at` may lag. A shared store that cannot be reached goes on telling what it
        knew, for a bounded time.
        """
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


class SessionStore(SessionTable, Protocol):
    """Sessions, their deadlines and their activity."""

    async def list(self, query: SessionQuery) -> Page:
        """Matching sessions by creation time. Raises Invalid for a cursor that is not ours."""
        ...

    async def insert(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session:
        """Store a new session at revision 1, and the `reservation` of its key with it. One atomic step.

        Raises KeyTaken while one of that key is on record that expires after the session's `created_at`;
        AlreadyExists; CapacityExhausted or LimitExceeded when the quota is used up in all or by its owner.
        Every session counts until it is deleted. Whatever is raised, nothing was changed.
        """
        ...

    async def replace(self, session: Session, *, relaxed: bool = False) -> Session:
        """Compare-and-swap: `session.revision` is the one that was read; returns it grown by one.

        Ends any lease on the session. `relaxed`: a crash within the next moment may undo it, for what
        is found out again then; readers see it all the same. Raises StaleRevision, or SessionNotFound.
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


class PoolStore(Protocol):
    """Warm sandboxes. An entry is in the pool, or bound to exactly one session, never both."""

    async def put_warm(self, entry: WarmSandbox) -> None:
        """Insert or update an entry by id. Raises Conflict when a session already has that sandbox."""
        ...

    async def update_warm(self, entry: WarmSandbox) -> bool:
        """Update an entry that is still there; False when somebody took it out, and then nothing changed."""
        ...

    async def list_warm(self, template: TemplateKey | None = None) -> Sequence[WarmSandbox]:
        """Entries of one template, or all, oldest first."""
        ...

    async def remove_warm(self, id: SandboxId) -> bool:
        """Take an entry out; False when it was not there (someone claimed or removed it)."""
        ...

    async def claim_warm(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session | None:
        """Bind the oldest READY entry of the session's template and generation, and insert the session.

        One atomic step: the returned session carries the entry's sandbox and `from_pool=True`, is
        stored at revision 1, and the entry is gone. None when there is no such entry: then nothing
        changed. `reservation` and what is raised are as with `insert`.
        """
        ...

    def pool_changes(self) -> AsyncIterator[None]:
        """An item after pool entries or templates changed, as a hint: many changes may be one, or none.

        Subscribed from the call on. Holds no queue.
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


class RoleStore(Protocol):
    """Who of several processes does what one of them is to do. Need not outlive a store of one process."""

    async def lease_role(self, role: str, *, owner: str, now: datetime, lease: timedelta) -> bool:
        """Have the role until `now + lease`, anew or for longer; False while another owner has it."""
        ...

    async def leave_role(self, role: str, *, owner: str) -> None:
        """Let somebody else have it at once. Somebody else's is left alone."""
        ...


class Store(SessionStore, PoolStore, TemplateStore, RoleStore, Protocol):
    """All of them, from one place, so that a claim can be one step."""

    async def check(self) -> None:
        """Return when the store can be read and written; raises StoreFailed."""
        ...
