"""A file as multipart/form-data (RFC 7578), streamed.

The HTTP client has an encoder of its own, which takes a pipe for an empty file and reads a file that
changes its size into a broken request; uploads come from both.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import BinaryIO

from agentcube.sdk._core.sources import FileSource


class Upload:
    """Text fields and one file, as a body that can be read in pieces, more than once where the file can seek.

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
        self._head = "".join(parts).encode("utf-8", "surrogateescape")
        self._tail = f"\r\n--{boundary}--\r\n".encode("ascii")
        self._file = FileSource(file)
        self._to_come: list[bytes] = []
        self.seekable = self._file.seekable

    @property
    def content_length(self) -> int | None:
        """Bytes of the body; None when the file's size is not known before it is read."""
        size = self._file.content_length
        return None if size is None else len(self._head) + size + len(self._tail)

    def rewind(self) -> None:
        """Start from the beginning."""
        self._file.rewind()
        self._to_come = [self._head, self._tail]

    def read(self) -> bytes:
        """The next piece, empty at the end. Blocks as the file does."""
        if len(self._to_come) == 2:
            return self._to_come.pop(0)
        chunk = self._file.read() if self._to_come else b""
        return chunk or (self._to_come.pop() if self._to_come else b"")
