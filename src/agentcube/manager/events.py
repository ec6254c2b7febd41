"""A session's phase changes, for whoever watches it.

What is told comes from the record, which keeps the latest changes: nothing is told twice or ahead of it,
and what the record does not have any more is told as a gap. A stream holds no queue.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from agentcube.errors import Invalid, LimitExceeded, SessionNotFound, Unavailable
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.session import PhaseChange, Session
from agentcube.ports.clock import Clock
from agentcube.ports.store import SessionStore
from agentcube.runtime.follow import follow

PING_S = 15.0  # of silence: below the idle timeouts of proxies, and finds clients that are gone


@dataclass(frozen=True, slots=True)
class Gap:
    """The changes `first` to `last` are not on record any more; `last` None: there was at least one."""

    first: int
    last: int | None


@dataclass(eq=False, slots=True)
class _Watcher:
    after: int  # the number of the change that was told last
    news: asyncio.Event = field(default_factory=asyncio.Event)
    ending: bool = False  # Deleting was told
    last: Session | None = None  # the record with which this process forgot the session


Told = PhaseChange | Gap | None
"""None: nothing happened for `PING_S`."""


class Events:
    """Streams of phase changes, while `run` runs."""

    def __init__(self, settings: ManagerSettings, store: SessionStore, clock: Clock) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._watchers: dict[SessionId, set[_Watcher]] = {}
        self._by_owner: Counter[str] = Counter()
        self._open = False

    @property
    def streams(self) -> int:
        """How many there are."""
        return self._by_owner.total()

    async def run(self) -> None:
        """Wake streams whose session changed, until cancelled."""
        self._open = True
        try:
            async for id in follow(self._store):
                self._wake(id)
        finally:
            self.close()

    def close(self) -> None:
        """End all streams and begin no more: the process is about to end, and clients can come back."""
        self._open = False
        self._wake(None)

    def note_last(self, session: Session) -> None:
        """The session is about to be forgotten, with this record."""
        for watcher in self._watchers.get(session.id, ()):
            watcher.last = session

    async def follow(self, session: Session, owner: str, *, after: int | None) -> AsyncIterator[Told]:
        """What happens to the session after its change number `after`; None: from its present phase on.

        A None that means nothing comes first, at once; or an error: Invalid (no such number),
        LimitExceeded, Unavailable. Ends after Deleted and with `close`. Raises StoreFailed.
        """
        newest = _history(session)[-1].seq
        if after is None:
            after = newest - 1
        elif after > newest:
            raise Invalid(
                f"this session has had {newest} phase changes; there is none after {after} to wait for"
            )
        watcher = self._join(session.id, owner, after)
        try:
            yield None
            while self._open:
                watcher.news.clear()
                try:
                    record = await self._store.get(session.id)
                except SessionNotFound:
                    for item in self._end(watcher):
                        yield item
                    return
                for item in _news(watcher, record):
                    yield item
                if not await _within(watcher.news, PING_S):
                    yield None
        finally:
            self._leave(session.id, owner, watcher)

    def _end(self, watcher: _Watcher) -> list[PhaseChange | Gap]:
        told: list[PhaseChange | Gap] = []
        if watcher.last is not None:
            told += _news(watcher, watcher.last)
        elif not watcher.ending:  # another manager ended it, before its Deleting could be read
            told.append(Gap(watcher.after + 1, None))
            watcher.after += 1
        return [*told, PhaseChange(seq=watcher.after + 1, phase=Phase.DELETED, at=self._clock.now())]

    def _join(self, id: SessionId, owner: str, after: int) -> _Watcher:
        if not self._open:
            raise Unavailable("the manager is starting or stopping")
        if self._by_owner.total() >= self._settings.event_streams_max:
            raise LimitExceeded("too many event streams are open", limit=self._settings.event_streams_max)
        if self._by_owner[owner] >= self._settings.event_streams_per_owner_max:
            limit = self._settings.event_streams_per_owner_max
            raise LimitExceeded("you have too many event streams open; close some", limit=limit)
        self._by_owner[owner] += 1
        watcher = _Watcher(after)
        self._watchers.setdefault(id, set()).add(watcher)
        return watcher

    def _leave(self, id: SessionId, owner: str, watcher: _Watcher) -> None:
        self._by_owner[owner] -= 1
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        self._watchers[id].discard(watcher)
        if not self._watchers[id]:
            del self._watchers[id]

    def _wake(self, id: SessionId | None) -> None:
        groups = self._watchers.values() if id is None else [self._watchers.get(id, set())]
        for group in groups:
            for watcher in group:
                watcher.news.set()


def _history(session: Session) -> tuple[PhaseChange, ...]:
    """Its history; a record of an older version has none and gets its present phase as one."""
    return session.chronicled(session.phase_since).history


def _news(watcher: _Watcher, record: Session) -> list[PhaseChange | Gap]:
    """What the record has that was not told yet; counted as told."""
    changes = [change for change in _history(record) if change.seq > watcher.after]
    if not changes:
        return []
    first = changes[0].seq
    gap = [Gap(watcher.after + 1, first - 1)] if first > watcher.after + 1 else []
    watcher.after = changes[-1].seq
    watcher.ending = changes[-1].phase is Phase.DELETING
    return [*gap, *changes]


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event was set in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
