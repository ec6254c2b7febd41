"""Changes of session records: compare-and-swap until it holds, each in its history and with its deadline set.

Everything of the manager that writes a session writes it here; so here it is decided who holds one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from agentcube.errors import StaleRevision
from agentcube.manager.flight import Interrupted
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.session import Hold, Session, is_acted_on, next_deadline
from agentcube.ports.clock import Clock
from agentcube.ports.store import UNBOUNDED, Quota, Reservation, Store

Edit = Callable[[Session], Session | None]
"""What to make of the newest record; None when it needs no change. May be called again after a lost race."""

_ATTEMPTS = 16  # races over one session are between a client, a deadline and a reconciler: a handful
_SOONEST = timedelta(
    seconds=1
)  # the queue's precision: a deadline that has passed unused comes back no sooner


class Records:
    """Writes sessions. `can_suspend` is the driver's power, known once the manager runs: without it nothing
    is ever due for suspending, and `cannot_suspend` says why.

    Whoever writes a phase in which something is to be done to the sandbox holds the session, for a lease
    that is renewed while it is being done. A hold is no lock: a client's wish may end it at any moment, and
    so may another manager once it is over. It fences: results are written by the holder only.
    """

    def __init__(self, settings: ManagerSettings, store: Store, clock: Clock) -> None:
        self.store = store
        self.me = settings.replica or f"manager-{secrets.token_hex(8)}"
        """Names this manager's present start."""
        self.can_suspend = False
        self.cannot_suspend = "the manager is starting"
        self._clock = clock
        self._lease = timedelta(seconds=settings.lease_s)
        self._abandoned = timedelta(seconds=settings.abandoned_s)
        self._sole = not settings.replicated

    def armed(self, session: Session) -> Session:
        """The session with its `due_at` set as this driver allows."""
        asked = session if self.can_suspend else replace(session, suspend_after=None)
        return replace(session, due_at=next_deadline(asked))

    async def insert(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session:
        """Store a new session. Raises KeyTaken, AlreadyExists, CapacityExhausted, LimitExceeded."""
        return await self.store.insert(self._changed(session), quota=quota, reservation=reservation)

    async def claim(
        self, session: Session, *, quota: Quota, reservation: Reservation | None = None
    ) -> Session | None:
        """Store a new session with a sandbox of its template's pool; None when the pool has none."""
        return await self.store.claim_warm(self._changed(session), quota=quota, reservation=reservation)

    async def change(self, id: SessionId, edit: Edit, *, relaxed: bool = False) -> Session:
        """Change the newest record by `edit`; returns the record as it is then. `relaxed`: see `Store.replace`.

        A new phase in which something is to be done is ours to do: have the session looked at. Raises
        SessionNotFound, what `edit` raises, and StaleRevision when the race never ends.
        """
        for _ in range(_ATTEMPTS):
            session = await self.store.get(id)
            edited = edit(session)
            if edited is None:
                return session
            try:
                return await self.store.replace(self._changed(edited, session), relaxed=relaxed)
            except StaleRevision:
                continue
        raise StaleRevision(f"session {id} is changed by others all the time; try again")

    async def finish(self, id: SessionId, edit: Edit, *, relaxed: bool = False) -> Session:
        """As `change`, for what came of an act of the holder. Raises Interrupted when that is not us any more."""

        def ours(now: Session) -> Session | None:
            if now.hold is None or now.hold.owner != self.me:
                raise Interrupted
            return edit(now)

        return await self.change(id, ours, relaxed=relaxed)

    # Holds

    def is_others(self, session: Session) -> bool:
        """Whether another manager acts on it now. Where there is no other, what it says is left over."""
        hold = session.hold
        if hold is None or hold.owner == self.me or self._sole:
            return False
        return hold.until > self._clock.now()

    async def hold(self, session: Session) -> Session:
        """The session, which nobody else holds, held by us. Raises StaleRevision, SessionNotFound.

        Of one that another manager held, the start that was under way counts as failed, and its client as gone.
        """
        hold, now = session.hold, self._clock.now()
        if hold is not None and hold.owner == self.me and hold.until > now:
            return session
        held = replace(session, hold=self._new_hold())
        if hold is not None and hold.owner != self.me:
            if session.phase is Phase.PENDING:
                held = replace(held, attempt=session.attempt + 1)
            if self._may_be_unknown(session):
                held = replace(held, answer_by=now + (self._abandoned if session.keyed else timedelta()))
        return await self.store.replace(self.armed(held))

    async def renew(self, id: SessionId) -> None:
        """Hold for longer what we act on. Raises Interrupted when it is not ours any more, SessionNotFound."""
        session = await self.store.get(id)
        if session.hold is None or session.hold.owner != self.me:
            raise Interrupted
        if session.hold.until - self._clock.now() < self._lease * 2 / 3:
            await self.finish(id, lambda now: replace(now, hold=self._new_hold()), relaxed=True)

    def _may_be_unknown(self, session: Session) -> bool:
        """Whether a session whose maker died can be one that nobody was told of."""
        if session.answer_by is not None or session.joined:
            return False
        # A store of one process may have lost, with the process, that it was Ready.
        return session.phase is Phase.PENDING or (session.phase is Phase.RUNNING and not self._sole)

    def _new_hold(self) -> Hold:
        return Hold(owner=self.me, until=self._clock.now() + self._lease)

    def _changed(self, session: Session, before: Session | None = None) -> Session:
        hold = session.hold
        if not is_acted_on(session):
            hold = None
        elif before is None or before.phase is not session.phase:
            hold = self._new_hold()
        return self.armed(session.chronicled(self._clock.now(), hold=hold))

    async def rearm(self, session: Session) -> None:
        """Put the session back into the deadline queue, later, when nothing was due after all."""
        due = self.armed(session).due_at
        if due == session.due_at and due is not None and due > self._clock.now():
            return
        if due is not None:
            due = max(due, self._clock.now() + _SOONEST)
        try:
            await self.store.replace(replace(session, due_at=due))
        except StaleRevision:
            return  # whoever changed it has set its deadline
