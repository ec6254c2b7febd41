"""Orders over sessions: by deadline (with leases) and by creation. Pure; times are arguments."""

from __future__ import annotations

import base64
import heapq
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from datetime import datetime, timedelta

from agentcube.errors import Invalid
from agentcube.model.ids import SessionId

_SLACK = 64  # stale rows a heap may hold beyond its live ones before it is rebuilt


class Deadlines:
    """Which session is due when, and until when somebody has leased it.

    Heaps with lazy deletion: `_due` and `_leased` are the truth, a row that disagrees is skipped.
    Setting and leasing cost O(log n).
    """

    def __init__(self) -> None:
        self._due: dict[SessionId, datetime] = {}
        self._leased: dict[SessionId, datetime] = {}
        self._waiting: list[tuple[datetime, SessionId]] = []
        self._lease_ends: list[tuple[datetime, SessionId]] = []

    def set(self, id: SessionId, due_at: datetime | None) -> None:
        """The session is due then (None: never). Ends its lease."""
        self._leased.pop(id, None)
        if due_at is None:
            self._due.pop(id, None)
            return
        self._due[id] = due_at
        heapq.heappush(self._waiting, (due_at, id))
        if len(self._waiting) > 2 * len(self._due) + _SLACK:
            self._waiting = [(at, i) for i, at in self._due.items() if i not in self._leased]
            heapq.heapify(self._waiting)

    def lease(self, *, now: datetime, lease: timedelta, limit: int) -> list[SessionId]:
        """At most `limit` sessions due by `now` and not leased, earliest first; leased from now on."""
        self._end_leases(now)
        taken: list[SessionId] = []
        until = now + lease
        while len(taken) < limit and (row := self._first()) is not None and row[0] <= now:
            heapq.heappop(self._waiting)
            self._leased[row[1]] = until
            heapq.heappush(self._lease_ends, (until, row[1]))
            taken.append(row[1])
        return taken

    def _first(self) -> tuple[datetime, SessionId] | None:
        while self._waiting:
            at, id = self._waiting[0]
            if self._due.get(id) == at and id not in self._leased:
                return at, id
            heapq.heappop(self._waiting)
        return None

    def _end_leases(self, now: datetime) -> None:
        while self._lease_ends and self._lease_ends[0][0] <= now:
            until, id = heapq.heappop(self._lease_ends)
            if self._leased.get(id) == until:
                del self._leased[id]
                heapq.heappush(self._waiting, (self._due[id], id))


class CreationOrder:
    """Sessions by creation time, then id, with cursors into that order."""

    def __init__(self) -> None:
        self._rows: list[tuple[datetime, SessionId]] = []

    def add(self, created_at: datetime, id: SessionId) -> None:
        """Put a session into its place."""
        insort(self._rows, (created_at, id))

    def remove(self, created_at: datetime, id: SessionId) -> None:
        """Take a session out."""
        at = bisect_left(self._rows, (created_at, id))
        assert self._rows[at] == (created_at, id)
        del self._rows[at]

    def after(self, cursor: str | None) -> Iterator[SessionId]:
        """Ids after the cursor, oldest first. Raises Invalid for a cursor that is not ours."""
        start = 0 if cursor is None else bisect_right(self._rows, read_cursor(cursor))
        return (self._rows[i][1] for i in range(start, len(self._rows)))


def cursor_after(created_at: datetime, id: SessionId) -> str:
    """An opaque text from which a listing goes on after this session, even when that is gone."""
    return base64.urlsafe_b64encode(f"{created_at.isoformat()} {id}".encode()).decode()


def read_cursor(cursor: str) -> tuple[datetime, SessionId]:
    """The place that `cursor_after` wrote. Raises Invalid for a text that it did not."""
    try:
        at, _, id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode().partition(" ")
        created_at = datetime.fromisoformat(at)
    except ValueError:
        created_at, id = None, ""
    if created_at is None or created_at.tzinfo is None or not id:
        raise Invalid("the cursor is not one that a listing returned; start again without it")
    return created_at, SessionId(id)
