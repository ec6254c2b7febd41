"""What processes wrote, kept by offset: all that is not confirmed yet, or the last of it.

An offset counts bytes of the program's own output from its first one. Everything that is kept has
a bound of its own, and one with all the rest of the session's processes (`Store`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Callable, Union

from agentcube.picod.output import READ_BYTES, PipeReader

STORE_BYTES_MAX = 64 * 1024 * 1024
FAIR_BYTES = 64 * 1024
"""What each stream may always keep, however much others do."""

_BLOCK = READ_BYTES

Block = Union[bytes, bytearray]


class Store:
    """Bounds what all outputs keep together: `total` bytes, and `FAIR_BYTES` of each one beyond that."""

    def __init__(self, total: int = STORE_BYTES_MAX) -> None:
        self._total = total
        self._kept = 0
        self._losing: dict[Output, None] = {}  # may lose their oldest bytes
        self._over: dict[Output, None] = {}  # of ended programs: the first lose all
        self._full: set[Output] = set()

    @property
    def crowded(self) -> bool:
        """Whether nobody should keep more than is fair."""
        return self._kept > self._total

    def changed(self, size: int) -> None:
        """`size` bytes more are kept, or fewer. Makes room among those that may lose something."""
        self._kept += size
        while self._kept > self._total and self._over:
            oldest = next(iter(self._over))
            del self._over[oldest]
            self._losing.pop(oldest, None)
            oldest.drop(oldest.end)
        while self._kept > self._total and self._losing:
            largest = max(self._losing, key=lambda one: one.size)
            if largest.size <= FAIR_BYTES:
                break
            largest.drop(largest.start + min(_BLOCK, largest.size - FAIR_BYTES))
        if size < 0 and self._full and not self.crowded:
            full, self._full = self._full, set()
            for output in full:
                output.make_room()

    def may_lose(self, output: Output) -> None:
        """The oldest bytes of `output` may be dropped for others."""
        self._losing[output] = None

    def is_over(self, output: Output) -> None:
        """The program of `output` has ended, and nobody is owed what it wrote."""
        self._over[output] = None
        self.changed(0)

    def tell(self, output: Output) -> None:
        """`output` is full only because all are: tell it when that changes."""
        self._full.add(output)

    def forget(self, output: Output) -> None:
        """Nobody will ask for it any more."""
        self._losing.pop(output, None)
        self._over.pop(output, None)
        self._full.discard(output)


class Output:
    """One stream of a program, as far as it is kept: the bytes from `start` to `end`.

    One that `holds` keeps what is not confirmed, and is full at its limit: whoever fills it has to
    wait for `room` then. Any other one drops its oldest bytes instead.
    """

    def __init__(self, store: Store, limit: int, *, holds: bool) -> None:
        self._store = store
        self._limit = limit
        self._holds = holds
        self._blocks: deque[Block] = deque()
        self._skip = 0  # bytes of the first block that are dropped already
        self.start = 0
        self.end = 0
        self.room: Callable[[], None] = lambda: None
        if not holds:
            store.may_lose(self)

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return self.end - self.start

    @property
    def full(self) -> bool:
        """Whether no more should be added now."""
        if not self._holds or self.size < FAIR_BYTES:
            return False
        if self.size >= self._limit:
            return True
        if self._store.crowded:
            self._store.tell(self)
            return True
        return False

    def add(self, data: bytes) -> None:
        """Keep `data`, which follows what came before."""
        last = self._blocks[-1] if self._blocks else b""
        if isinstance(last, bytearray) and len(last) + len(data) <= _BLOCK:
            last += data  # not a block for every byte that a program writes on its own
        else:
            self._blocks.append(bytearray(data) if len(data) < _BLOCK // 2 else data)
        self.end += len(data)
        self._store.changed(len(data))
        if not self._holds:
            self.drop(self.end - self._limit)

    def read(self, offset: int, most: int) -> bytes:
        """Up to `most` bytes from `offset`, which must be kept or the end."""
        assert self.start <= offset <= self.end
        skip = self._skip + offset - self.start
        found: list[Block] = []
        for block in self._blocks:
            if skip < len(block):
                piece = block[skip : skip + most]
                found.append(piece)
                most -= len(piece)
                if most == 0:
                    break
            skip = max(0, skip - len(block))
        return b"".join(found)

    def drop(self, before: int) -> None:
        """Keep nothing before this offset any more: it is confirmed, or has to make room."""
        size = min(before, self.end) - self.start
        if size <= 0:
            return
        self.start += size
        self._skip += size
        while self._blocks and self._skip >= len(self._blocks[0]):
            self._skip -= len(self._blocks.popleft())
        self._store.changed(-size)
        self.make_room()

    def make_room(self) -> None:
        """Let it be filled again if it is not full."""
        if not self.full:
            self.room()

    def conclude(self) -> None:
        """Nobody is owed this any more: it stays until the room is needed. Idempotent."""
        self._holds = False
        if self._limit:
            self._store.is_over(self)
        self.room()

    def forget(self) -> None:
        """Keep nothing, and nothing that comes."""
        self._holds, self._limit = False, 0
        self.drop(self.end)
        self._store.forget(self)


class Source:
    """A pipe, or a terminal, and the output it is read into; `changed` hears of every read and of the end."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, output: Output, changed: Callable[[], None]
    ) -> None:
        self._output = output
        self._changed = changed
        self._last: int | None = None  # the offset at which no more is wanted
        self.ended = False
        self.reader = PipeReader(loop, fd, self._on_data, self._on_end)
        output.room = self.reader.resume

    def _on_data(self, data: bytes) -> None:
        self._output.add(data)
        if self._output.full:
            self.reader.pause()
        if self._last is not None and self._output.end >= self._last:
            self._stop()
        self._changed()

    def _on_end(self) -> None:
        self.ended = True
        self._changed()

    def finish(self) -> None:
        """Read only what has been written by now, if somebody still holds the other end."""
        if not self.ended:
            self._last = self._output.end + self.reader.waiting()
            if self._last == self._output.end:
                self._stop()
                self._changed()

    def _stop(self) -> None:
        self.ended = True
        self._output.room = lambda: None
        self.reader.pause()
