"""Bodies that are sent in pieces: what a request's `upload` can be."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol

from agentcube.sdk._core.errors import InvalidArgument

CHUNK_BYTES = 256 * 1024

Progress = Callable[[int, int | None], object]
"""Called with the bytes moved so far and how many there are in all (None: not known); maybe in a thread of its own."""


class Source(Protocol):
    """A body. Where it is `seekable`, `rewind` begins it again; else it can be sent only once."""

    content_type: str
    seekable: bool

    @property
    def content_length(self) -> int | None:
        """Bytes of the body; None when that is not known before they are read."""

    def rewind(self) -> None:
        """Begin."""

    def read(self) -> bytes:
        """The next piece, empty at the end. May block as files and pipes do."""


class FileSource:
    """A file from where it stands. A regular file is sent with the size it has now (see `multipart.Upload`)."""

    content_type = "application/octet-stream"

    def __init__(self, file: BinaryIO, progress: Progress | None = None) -> None:
        self._progress = progress
        self._done = 0
        self.seekable = file.seekable()
        self._file = file
        self._start = file.tell() if self.seekable else 0
        self._size = size_of(file, self._start) if self.seekable else None
        self._left: int | None = None

    @property
    def content_length(self) -> int | None:
        return self._size

    def rewind(self) -> None:
        if self.seekable:
            self._file.seek(self._start)
        self._left = self._size
        self._done = 0

    def read(self) -> bytes:
        chunk = self._file.read(CHUNK_BYTES if self._left is None else min(self._left, CHUNK_BYTES))
        if self._left is not None:
            if not chunk and self._left:
                raise InvalidArgument("the file became shorter while it was uploaded")
            self._left -= len(chunk)
        self._done += len(chunk)
        if chunk and self._progress is not None:
            self._progress(self._done, self._size)
        return chunk


class PieceSource:
    """Pieces as an iterable gives them. Can be sent only once, unless each `iter` begins anew (`again`)."""

    content_type = "application/octet-stream"

    def __init__(self, pieces: Iterable[bytes], *, again: bool = False) -> None:
        self.seekable = again
        self._pieces = pieces
        self._iterator: Iterator[bytes] = iter(())

    @property
    def content_length(self) -> int | None:
        return None

    def rewind(self) -> None:
        self._iterator = iter(self._pieces)

    def read(self) -> bytes:
        for piece in self._iterator:
            if piece:
                return bytes(piece)
        return b""


def size_of(file: BinaryIO, start: int) -> int | None:
    """Bytes of a file from `start`; None where only reading it tells."""
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError):
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
        return max(0, end - start)
    # Files of /proc and the like are regular, of size 0, and not empty.
    return max(0, status.st_size - start) if stat.S_ISREG(status.st_mode) and status.st_size else None
