"""Files of a session, open: one to read piece by piece and to seek in, and one to write."""

from __future__ import annotations

import io
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import BinaryIO, Self, cast

from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.results import FileInfo

# [async
Send = Callable[[BinaryIO], Awaitable[FileInfo]]
# async]
# sync: Send = Callable[[BinaryIO], FileInfo]
SPOOL_BYTES = 8 * 1024 * 1024  # of a file being written stay in memory; beyond, it lies in a temporary file


class AsyncFileReader:
    # [async
    """A file of the workspace, open for reading. Iterate over it for its pieces, or `read` and `seek`.

    Its bytes are fetched as they are wanted, in constant memory.
    """

    # async]
    # sync: """A file of the workspace, open for reading. Iterate over it for its pieces, or `read` and `seek`.
    # sync:
    # sync: Its bytes are fetched as they are wanted, in constant memory. Whatever reads binary files can be given
    # sync: it: zipfile, pandas, or `io.TextIOWrapper(io.BufferedReader(file))` for lines of text.
    # sync: """
    # sync:
    # sync: mode = "rb"

    def __init__(self, pieces_from: Callable[[int], AsyncGenerator[bytes, None]], size: int) -> None:
        """Made by `files.reader`."""
        self.size = size
        self._pieces_from = pieces_from
        self._pieces: AsyncGenerator[bytes, None] | None = None
        self._rest = b""
        self._position = 0

    async def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer only at the end; all that are left when it is negative."""
        got: list[bytes] = []
        left = size
        while left:
            piece = self._rest or await self._next()
            if not piece:
                break
            taken, self._rest = (piece, b"") if left < 0 else (piece[:left], piece[left:])
            got.append(taken)
            self._position += len(taken)
            left -= len(taken) if left > 0 else 0
        return b"".join(got)

    async def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go on reading at another place, counted from the start, the current one or the end; the new position."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}.get(whence)
        if start is None or start + offset < 0:
            raise InvalidArgument(f"cannot seek to {offset} from {whence}")
        if start + offset != self._position:
            await self.aclose()
            self._position = start + offset
        return self._position

    def tell(self) -> int:
        """The position of the next byte."""
        return self._position

    # sync: def readinto(self, buffer: bytearray | memoryview) -> int:
    # sync:     """As `io.RawIOBase`: read into a buffer; how many bytes."""
    # sync:     data = self.read(len(buffer))
    # sync:     buffer[: len(data)] = data
    # sync:     return len(data)
    # sync:
    # sync: def readable(self) -> bool:
    # sync:     """As of a file: True."""
    # sync:     return True
    # sync:
    # sync: def seekable(self) -> bool:
    # sync:     """As of a file: True."""
    # sync:     return True
    # sync:
    # sync: def writable(self) -> bool:
    # sync:     """As of a file: False."""
    # sync:     return False
    # sync:
    # sync: def flush(self) -> None:
    # sync:     """As of a file: nothing, because nothing is written."""
    # sync:
    # sync: @property
    # sync: def closed(self) -> bool:
    # sync:     """As of a file: False, because it can be read again at any time."""
    # sync:     return False
    # sync:
    async def aclose(self) -> None:
        """Fetch no more. Idempotent."""
        pieces, self._pieces, self._rest = self._pieces, None, b""
        if pieces is not None:
            await pieces.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece, self._rest = self._rest or await self._next(), b""
        if not piece:
            raise StopAsyncIteration
        self._position += len(piece)
        return piece

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _next(self) -> bytes:
        if self._pieces is None:
            self._pieces = self._pieces_from(self._position)
        return await anext(self._pieces, b"")


class AsyncFileWriter:
    """A file of the workspace, open for writing. It is sent when the block ends well, and appears whole or not at all.

    What is written is kept here until then, beyond 8 MiB in a temporary file. A block that ends in an exception
    sends nothing.
    """

    def __init__(self, send: Send) -> None:
        """Made by `files.writer`."""
        self.info: FileInfo | None = None
        self._send = send
        self._spool = cast(BinaryIO, tempfile.SpooledTemporaryFile(SPOOL_BYTES))  # noqa: SIM115 (closed by `aclose`)

    async def write(self, data: bytes | str) -> int:
        """Append to what will be sent; text as UTF-8. How many bytes that were."""
        if self._spool.closed:
            raise ValueError("this file is closed")
        return self._spool.write(data.encode("utf-8") if isinstance(data, str) else data)

    async def aclose(self) -> None:
        """Send the file; then `info` describes it. Idempotent."""
        if self._spool.closed:
            return
        with self._spool:
            self._spool.seek(0)
            self.info = await self._send(self._spool)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._spool.close()
        await self.aclose()
