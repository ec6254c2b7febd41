"""Reads that are much work are done in turns, so that no connection holds up the others.

Bytes that only pass cost next to nothing; framing does not. A quarter of a megabyte, which the event
loop reads at once, can be forty thousand chunks of one byte, and it reads many times in a row.
"""

from __future__ import annotations

import asyncio

TURN_BYTES = 4096
"""What is looked at before others have their turn, when it is much work: some 700 chunks, 3 ms."""

_LINES_MAX = 256  # in one read; a stream of events has a line or two in each


class InTurns(asyncio.Protocol):
    """A protocol whose `data_received` begins with `set_aside`, and whose reading stops meanwhile."""

    __slots__ = ("_later",)

    def __init__(self) -> None:
        self._later = b""

    @property
    def behind(self) -> bool:
        """Whether something that was read waits for its turn. Nothing more may be read then."""
        return bool(self._later)

    def update_reading(self) -> None:
        """Stop or go on reading; `behind` has changed."""
        raise NotImplementedError

    def set_aside(self, data: bytes) -> bytes:
        """What of `data` to look at now; the rest comes by `data_received`, before what is behind already."""
        if len(data) <= TURN_BYTES or data.count(b"\r\n") <= _LINES_MAX:
            return data
        behind, self._later = self._later, data[TURN_BYTES:] + self._later
        if not behind:
            self.update_reading()
            asyncio.get_running_loop().call_soon(self._next_turn)
        return data[:TURN_BYTES]

    def _next_turn(self) -> None:
        later = self._later
        if not later:
            return  # the connection has ended meanwhile
        self._later = later[TURN_BYTES:]
        if self._later:
            asyncio.get_running_loop().call_soon(self._next_turn)
        else:
            self.update_reading()
        self.data_received(later[:TURN_BYTES])
