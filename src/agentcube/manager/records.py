"""Changes of session records: compare-and-swap until it holds, each with its deadline set.

Everything of the manager that writes a session writes it here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from agentcube.errors import StaleRevision
from agentcube.model.ids import SessionId
from agentcube.model.session import Session, next_deadline
from agentcube.ports.clock import Clock
from agentcube.ports.store import Store

Edit = Callable[[Session], Session | None]
"""What to make of the newest record; None when it needs no change. May be called again after a lost race."""

_ATTEMPTS = 16  # races over one session are between a client, a deadline and a reconciler: a handful
_SOONEST = timedelta(
    seconds=1
)  # the queue's precision: a deadline that has passed unused comes back no sooner


class Records:
    """Writes sessions. `can_suspend` is the driver's power, known once the manager runs: without it nothing
    is ever due for suspending.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        self.store = store
        self.can_suspend = False
        self._clock = clock
        self.on_due: Callable[[datetime], None] = lambda due: None
        """Told of every deadline that is written, so that who waits for the next one can wake."""

    def armed(self, session: Session) -> Session:
        """The session with its `due_at` set as this driver allows."""
        asked = session if self.can_suspend else replace(session, suspend_after=None)
        return replace(session, due_at=next_deadline(asked))

    async def insert(self, session: Session) -> Session:
        """Store a new session. Raises AlreadyExists."""
        return self._noted(await self.store.insert(self.armed(session)))

    async def claim(self, session: Session) -> Session | None:
        """Store a new session with a sandbox of its template's pool; None when the pool has none."""
        claimed = await self.store.claim_warm(self.armed(session))
        return None if claimed is None else self._noted(claimed)

    async def change(self, id: SessionId, edit: Edit) -> Session:
        """Change the newest record by `edit`; returns the record as it is then.

        Raises SessionNotFound, what `edit` raises, and StaleRevision when the race never ends.
        """
        for _ in range(_ATTEMPTS):
            session = await self.store.get(id)
            edited = edit(session)
            if edited is None:
                return session
            try:
                return self._noted(await self.store.replace(self.armed(edited)))
            except StaleRevision:
                continue
        raise StaleRevision(f"session {id} is changed by others all the time; try again")

    async def rearm(self, session: Session) -> None:
        """Put the session back into the deadline queue, later, when nothing was due after all."""
        due = self.armed(session).due_at
        if due == session.due_at and due is not None and due > self._clock.now():
            return
        if due is not None:
            due = max(due, self._clock.now() + _SOONEST)
        try:
            self._noted(await self.store.replace(replace(session, due_at=due)))
        except StaleRevision:
            return  # whoever changed it has set its deadline

    def _noted(self, session: Session) -> Session:
        if session.due_at is not None:
            self.on_due(session.due_at)
        return session
