"""A file as multipart/form-data (RFC 7578), streamed.

The HTTP client has an encoder of its own, which takes a pipe for an empty file and reads a file that
changes its size into a broken request; uploads come from both.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Mapping
from typing import BinaryIO

from agentcube.sdk._core.errors import InvalidArgument

CHUNK_BYTES = 256 * 1024


class Upload:
    """Text fields and one file, as a body that can be read in chunks, more than once where the file can seek.

    The file is read from where it stands. A regular file is sent with the size it has now: what is
    appended meanwhile is not sent, and one that shrinks ends the request with InvalidArgument.
    """

    def __init__(self, file: BinaryIO, fields: Mapping[str, str]) -> None:
        boundary = secrets.token_hex(16)
        parts = [
            f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in fields.items()
        ]
        parts.append(
            f'--{boundary}\r\ncontent-disposition: form-data; name="file"; filename="file"\r\n'
            "content-type: application/octet-stream\r\n\r\n"
        )
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.head = "".join(parts).encode("utf-8", "surrogateescape")
        self.tail = f"\r\n--{boundary}--\r\n".encode("ascii")
        self.seekable = file.seekable()
        self._file = file
        self._start = file.tell() if self.seekable else 0
        self._size = _size_of(file, self._start) if self.seekable else None
        self._left: int | None = None

    @property
    def content_length(self) -> int | None:
        """Bytes of the body; None when the file's size is not known before it is read."""
        return None if self._size is None else len(self.head) + self._size + len(self.tail)

    def rewind(self) -> None:
        """Start reading the file from its beginning."""
        if self.seekable:
            self._file.seek(self._start)
        self._left = self._size

    def read(self) -> bytes:
        """The next chunk of the file, empty at its end. Blocks as the file does."""
        if self._left is None:
            return self._file.read(CHUNK_BYTES)
        chunk = self._file.read(min(self._left, CHUNK_BYTES))
        if not chunk and self._left:
            raise InvalidArgument("the file became shorter while it was uploaded")
        self._left -= len(chunk)
        return chunk


def _size_of(file: BinaryIO, start: int) -> int | None:
    try:
        status = os.fstat(file.fileno())
    except (AttributeError, OSError):
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
        return max(0, end - start)
    # Files of /proc and the like are regular, of size 0, and not empty.
    return max(0, status.st_size - start) if stat.S_ISREG(status.st_mode) and status.st_size else None
