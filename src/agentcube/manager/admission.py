"""Who may come in: bounds on sessions and on creations under way, and the gate while starting or stopping."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable

from agentcube.errors import CapacityExhausted, LimitExceeded, Unavailable
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.ports.tokens import Subject


class Admission:
    """Counts the sessions of this process. Pure bookkeeping: a refusal leaves nothing behind."""

    def __init__(self, settings: ManagerSettings) -> None:
        self._settings = settings
        self._owners: dict[SessionId, str] = {}
        self._by_owner: Counter[str] = Counter()
        self._creating = 0
        self._open = asyncio.Event()
        self._closed = False

    @property
    def is_open(self) -> bool:
        """Whether sessions can be made."""
        return self._open.is_set() and not self._closed

    def reset(self, sessions: Iterable[Session]) -> None:
        """Begin with the sessions on record, and let creations in."""
        self._owners = {s.id: s.owner for s in sessions}
        self._by_owner = Counter(self._owners.values())
        self._closed = False
        self._open.set()

    def pause(self) -> None:
        """Let creations wait: what is on record is not known yet."""
        self._open.clear()
        self._closed = False

    def close(self) -> None:
        """Refuse creations from now on, those that wait too: the manager stops."""
        self._closed = True
        self._open.set()

    @contextlib.asynccontextmanager
    async def creating(self) -> AsyncIterator[None]:
        """One creation. Waits while the manager starts; raises Unavailable, LimitExceeded."""
        if self._creating >= self._settings.creates_waiting_max:
            raise LimitExceeded(f"{self._creating} sessions are being created already; try again in a moment")
        self._creating += 1
        try:
            try:
                async with asyncio.timeout(self._settings.start_timeout_s):
                    await self._open.wait()
            except TimeoutError:
                raise Unavailable("the manager is still finding out what it left behind") from None
            if self._closed:
                raise Unavailable("the manager is stopping")
            yield
        finally:
            self._creating -= 1

    def admit(self, id: SessionId, subject: Subject) -> None:
        """Count a new session. Raises CapacityExhausted, LimitExceeded."""
        if len(self._owners) >= self._settings.sessions_max:
            raise CapacityExhausted(f"this server holds {self._settings.sessions_max} sessions, and it does")
        if self._by_owner[subject.name] >= self._settings.sessions_per_owner_max:
            raise LimitExceeded(f"you have {self._by_owner[subject.name]} sessions; delete some first")
        self._owners[id] = subject.name
        self._by_owner[subject.name] += 1

    def forget(self, id: SessionId) -> None:
        """A session is gone, or was never made."""
        owner = self._owners.pop(id, None)
        if owner is not None:
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]
