"""Reads that are much work are done in turns, so that no connection holds up the others.

Bytes that only pass cost next to nothing; framing does not. A quarter of a megabyte, which the event
loop reads at once, can be forty thousand chunks of one byte, and it reads many times in a row.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

TURN_LINES = 256
"""Chunks that are looked at before others have their turn: some tenths of a millisecond."""


class InTurns(asyncio.Protocol, ABC):
    """A protocol that can put off what it read, and reads no more meanwhile."""

    __slots__ = ("_later",)

    def __init__(self) -> None:
        self._later = b""

    @property
    def behind(self) -> bool:
        """Whether something that was read waits for its turn. Nothing more may be read then."""
        return bool(self._later)

    @abstractmethod
    def update_reading(self) -> None:
        """Stop or go on reading; `behind` has changed."""

    def put_off(self, data: bytes) -> None:
        """`data` comes again, by `data_received`, when others had their turn; before what is put off already."""
        behind, self._later = self._later, data + self._later
        if not behind:
            self.update_reading()
            asyncio.get_running_loop().call_soon(self._next_turn)

    def _next_turn(self) -> None:
        later, self._later = self._later, b""
        if not later:
            return  # the connection has ended meanwhile
        self.data_received(later)
        if not self._later:
            self.update_reading()
