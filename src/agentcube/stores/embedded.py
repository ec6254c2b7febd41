"""What every store that lives in this process's memory shares: reads, deadlines, changes.

A subclass decides what a commit is. It belongs to one event loop; its methods are not thread-safe.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.pool import WarmSandbox
from agentcube.model.session import Session
from agentcube.model.template import Kind, Template, TemplateKey
from agentcube.ports.store import UNBOUNDED, Page, Quota, Reservation, SessionQuery
from agentcube.stores.feed import PENDING_MAX, Bell, Feed
from agentcube.stores.index import CreationOrder, Deadlines, cursor_after
from agentcube.stores.listing import check_limit, chosen_templates, matches
from agentcube.stores.tables import (
    Change,
    DropSession,
    DropTemplate,
    DropWarm,
    Operation,
    PutSession,
    PutTemplate,
    PutWarm,
    Tables,
)

R = TypeVar("R")


class EmbeddedStore(ABC):
    """Implements `ports.store.Store` over `Tables`, but for the commit.

    `_live` is what readers see. `_commit` makes the changes of an operation durable, publishes them
    and returns the operation's answer.
    """

    def __init__(self, *, pending_max: int = PENDING_MAX) -> None:
        self._live = Tables()
        self._deadlines = Deadlines()
        self._order = CreationOrder()
        self._feed = Feed(pending_max=pending_max)
        self._bell = Bell()
        self._roles: dict[str, tuple[str, datetime]] = {}

    @abstractmethod
    async def _commit(self, operation: Operation[R]) -> R:
        """Do the operation durably; raises what it raises, or StoreFailed."""

    async def _commit_relaxed(self, operation: Operation[R]) -> R:
        """As `_commit`, but durable only a moment later, where that is faster."""
        return await self._commit(operation)

    @abstractmethod
    async def touch(self, activity: Mapping[SessionId, datetime]) -> None: ...

    @abstractmethod
    async def check(self) -> None: ...

    def _publish(self, changes: Iterable[Change]) -> None:
        """Show committed changes to readers, the deadline queue and subscribers."""
        changed = []
        pools = False
        for change in changes:
            match change:
                case PutSession(session):
                    self._place(session)
                    changed.append(session.id)
                case DropSession(id):
                    self._displace(id)
                    changed.append(id)
                case PutWarm() | DropWarm() | PutTemplate() | DropTemplate():
                    pools = True
            self._live.apply((change,))
        self._feed.publish(changed)
        if pools:
            self._bell.ring()

    def _place(self, session: Session) -> None:
        known = self._live.sessions.get(session.id)
        if known is not None and known.created_at != session.created_at:
            self._order.remove(known.created_at, known.id)
            known = None
        if known is None:
            self._order.add(session.created_at, session.id)
        self._deadlines.set(session.id, session.due_at)

    def _displace(self, id: SessionId) -> None:
        known = self._live.sessions.get(id)
        if known is not None:
            self._order.remove(known.created_at, id)
            self._deadlines.set(id, None)

    # Sessions

    async def get(self, id: SessionId) -> Session:
        return self._live.session(id)

    def peek(self, id: SessionId) -> Session | None:
        return self._live.sessions.get(id)

    async def list(self, query: SessionQuery) -> Page:
        check_limit(query)
        found: list[Session] = []
        for id in self._order.after(query.cursor):
            session = self._live.sessions[id]
            if not matches(session, query):
                continue
            if len(found) == query.limit:
                return Page(tuple(found), cursor_after(found[-1].created_at, found[-1].id))
            found.append(session)
        return Page(tuple(found), None)

    async def insert(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session:
        return await self._commit(lambda tables: tables.insert(session, quota, reservation))

    async def replace(self, session: Session, *, relaxed: bool = False) -> Session:
        commit = self._commit_relaxed if relaxed else self._commit
        return await commit(lambda tables: tables.replace(session))

    async def delete(self, id: SessionId, *, revision: int) -> None:
        await self._commit(lambda tables: tables.delete(id, revision))

    async def lease_due(
        self, *, now: datetime, owner: str, lease: timedelta, limit: int
    ) -> Sequence[Session]:
        # A lease hides its session from everybody, its owner included, so nothing asks whose it is.
        # It need not outlive the process: there is no other one, and a new one looks at everything.
        ids = self._deadlines.lease(now=now, lease=lease, limit=limit)
        return [self._live.sessions[id] for id in ids]

    def changes(self) -> AsyncIterator[SessionId | None]:
        return self._feed.subscribe()

    # Pools

    async def put_warm(self, entry: WarmSandbox) -> None:
        await self._commit(lambda tables: tables.put_warm(entry))

    async def update_warm(self, entry: WarmSandbox) -> bool:
        return await self._commit(lambda tables: tables.update_warm(entry))

    async def list_warm(self, template: TemplateKey | None = None) -> Sequence[WarmSandbox]:
        entries = (e for e in self._live.warm.values() if template in (None, e.template))
        return sorted(entries, key=lambda e: (e.created_at, e.id))

    async def remove_warm(self, id: SandboxId) -> bool:
        return await self._commit(lambda tables: tables.remove_warm(id))

    async def claim_warm(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session | None:
        return await self._commit(lambda tables: tables.claim_warm(session, quota, reservation))

    def pool_changes(self) -> AsyncIterator[None]:
        return self._bell.listen()

    # Templates

    async def put_template(self, template: Template) -> Template:
        return await self._commit(lambda tables: tables.put_template(template))

    async def get_template(self, key: TemplateKey) -> Template:
        return self._live.template(key)

    async def list_templates(
        self, *, kind: Kind | None = None, namespace: str | None = None
    ) -> Sequence[Template]:
        return chosen_templates(self._live.templates.values(), kind=kind, namespace=namespace)

    async def delete_template(self, key: TemplateKey) -> None:
        await self._commit(lambda tables: tables.delete_template(key))

    # Roles: forgotten with the process, as there is no other one

    async def lease_role(self, role: str, *, owner: str, now: datetime, lease: timedelta) -> bool:
        holder, until = self._roles.get(role, (owner, now))
        if holder != owner and until > now:
            return False
        self._roles[role] = owner, now + lease
        return True

    async def leave_role(self, role: str, *, owner: str) -> None:
        if self._roles.get(role, ("", None))[0] == owner:
            del self._roles[role]
