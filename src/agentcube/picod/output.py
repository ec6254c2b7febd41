"""What programs write: pipes read without ever blocking, buffers that never grow past their bound."""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
import termios
import weakref
from collections import deque
from typing import Callable

_INT = struct.Struct("=i")
READ_BYTES = 64 * 1024  # what a pipe holds
_DRAIN_READS = 32  # 1 MiB with a pipe of the default size: a writer that never stops must not hold us


class Heads:
    """What is kept of all streams together, so that many calls cannot fill the memory of PicoD."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._alive: weakref.WeakSet[Head] = weakref.WeakSet()

    def new(self, limit: int) -> Head:
        """A head that counts for as long as it lives."""
        head = Head(limit, self)
        self._alive.add(head)
        return head

    def room(self) -> int:
        """How many more bytes fit."""
        return self._total - sum(head.size for head in self._alive)


class Head:
    """The first `limit` bytes of a stream; `truncated` tells that there were more (or no room among `heads`)."""

    def __init__(self, limit: int, heads: Heads | None = None) -> None:
        self._limit = limit
        self._heads = heads
        self._kept = bytearray()  # not a list: a program may write byte by byte
        self.truncated = False

    @property
    def size(self) -> int:
        """How much is kept."""
        return len(self._kept)

    def add(self, data: bytes) -> None:
        """Keep what fits."""
        if self.truncated:
            return
        room = self._limit - len(self._kept)
        if self._heads is not None:
            room = max(0, min(room, self._heads.room()))
        if len(data) > room:
            data, self.truncated = data[:room], True
        self._kept += data

    def add_line(self, text: str) -> None:
        """Add a line of PicoD's own, on a line of its own, past the limit if need be."""
        if self._kept and not self._kept.endswith(b"\n"):
            self._kept += b"\n"
        self._kept += text.encode("utf-8", "replace") + b"\n"

    def content(self) -> bytearray:
        """What was kept; not a copy."""
        return self._kept


class Ring:
    """The last `limit` bytes of a stream, each chunk with its place in the order of all streams."""

    CHUNKS_MAX = 4096

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self.chunks: deque[tuple[int, bytes]] = deque()

    def add(self, order: int, data: bytes) -> None:
        """Append `data`, forgetting the oldest. `order` grows with every chunk of any stream."""
        self.chunks.append((order, data))
        self._size += len(data)
        while self._size > self._limit or len(self.chunks) > self.CHUNKS_MAX:
            first, oldest = self.chunks.popleft()
            over = self._size - self._limit
            self._size -= len(oldest)
            if 0 < over < len(oldest):  # the end of the chunk still fits
                self.chunks.appendleft((first, oldest[over:]))
                self._size += len(oldest) - over


class PipeReader:
    """Reads one pipe into `sink` until its end; `ended` is called once, at the end or at `close`.

    `discard` goes on reading, for the sake of whoever writes, and keeps nothing.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fd: int,
        sink: Callable[[bytes], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._sink = sink
        self._ended = ended
        self._paused = False
        self.open = True
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._read)

    def _read(self) -> bool:
        """Read once; false when there is nothing now or no more ever."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._sink(data)
        return True

    def drain(self) -> None:
        """Take what is in the pipe now, up to a bound."""
        for _ in range(_DRAIN_READS):
            if not self.open or self._paused or not self._read():
                return

    def pause(self) -> None:
        """Leave in the pipe what comes, which in the end stops who writes it. Idempotent, as `resume` is."""
        if self.open and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._fd)

    def resume(self) -> None:
        """Go on reading."""
        if self.open and self._paused:
            self._paused = False
            self._loop.add_reader(self._fd, self._read)

    def waiting(self) -> int:
        """How many bytes stand in the pipe."""
        if not self.open:
            return 0
        return _INT.unpack(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(_INT.size)))[0]  # type: ignore[no-any-return]

    def discard(self) -> None:
        """From now on keep nothing, nor tell of the end; whoever was told may be forgotten."""
        self._sink = lambda data: None
        self._ended = lambda: None
        self.resume()

    def close(self) -> None:
        """Stop reading; the writer gets SIGPIPE. Idempotent."""
        if self.open:
            self.open = False
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            ended = self._ended
            self.discard()
            ended()


class PipeWriter:
    """Writes `data` into a pipe as it empties, then closes it. A reader that went away is fine."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, data: bytes) -> None:
        self._loop = loop
        self._fd = fd
        self._data = memoryview(data)
        self.open = True
        os.set_blocking(fd, False)
        loop.add_writer(fd, self._write)

    def _write(self) -> None:
        try:
            self._data = self._data[os.write(self._fd, self._data) :]
        except BlockingIOError:
            return
        except OSError:
            self._data = self._data[:0]
        if not self._data:
            self.close()

    def close(self) -> None:
        """Close the pipe, written or not. Idempotent."""
        if self.open:
            self.open = False
            self._loop.remove_writer(self._fd)
            os.close(self._fd)
