"""The server's clock, read here without asking: what is stored as a time means the same to every process."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DOUBT_S = 0.001  # on top of half a round trip: what scheduling adds at either end


class StoreClock:
    """A `ports.clock.Clock` that goes by this machine's monotonic clock, set by the server's TIME.

    A jump of this machine's wall clock does not move it; one of the server's does, with the next
    reading. A reading that agrees to within its own uncertainty changes nothing.
    """

    def __init__(self) -> None:
        self._offset_s: float | None = None

    def set(self, server_s: float, *, sent: float, received: float) -> None:
        """Take a reading: the server said `server_s` (Unix time) between two monotonic moments."""
        offset = server_s - (sent + received) / 2
        doubt = (received - sent) / 2 + _DOUBT_S
        if self._offset_s is None or abs(offset - self._offset_s) > doubt:
            self._offset_s = offset

    def now(self) -> datetime:
        if self._offset_s is None:
            return datetime.now(UTC)
        return _EPOCH + timedelta(seconds=self._offset_s + time.monotonic())
