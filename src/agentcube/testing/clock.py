"""A clock that moves only when it is told to."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class FakeClock:
    """A `ports.clock.Clock` that stands still until `advance` or `set`."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if start.tzinfo is None:
            raise ValueError("a clock tells aware times")
        self._now = start

    def now(self) -> datetime:
        return self._now

    def advance(self, by: timedelta) -> datetime:
        """Move on by `by` (never backwards) and return the new time."""
        if by < timedelta(0):
            raise ValueError("use set() to move a clock backwards")
        self._now += by
        return self._now

    def set(self, now: datetime) -> None:
        """Jump to an aware time, also backwards, as a machine's clock may."""
        if now.tzinfo is None:
            raise ValueError("a clock tells aware times")
        self._now = now
