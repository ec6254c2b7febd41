"""Streams of JSON objects, one a line (NDJSON), from pieces of bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from agentcube.sdk._core.errors import UnexpectedAnswer

LINE_BYTES_MAX = 64 * 1024 * 1024
"""An event has at most 16 MiB (the server's bound), which JSON's escapes may make three times as long."""


class Lines:
    """Splits what comes into lines, and lines into objects."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begun: list[bytes] = []
        self._size = 0

    def feed(self, piece: bytes) -> Iterator[dict[str, Any]]:
        """The objects that are complete with this piece. Raises UnexpectedAnswer for what is no such stream."""
        *whole, rest = piece.split(b"\n")
        for line in whole:
            if self._begun:
                line = b"".join([*self._begun, line])
                self._begun.clear()
                self._size = 0
            if line.strip():
                yield self._object(line)
        if rest:
            self._begun.append(rest)
            self._size += len(rest)
            if self._size > LINE_BYTES_MAX:
                raise UnexpectedAnswer(
                    f"{self._what}: a line of the stream has more than {LINE_BYTES_MAX} bytes"
                )

    def restart(self) -> None:
        """Forget a line that was begun: another connection begins with a whole one."""
        self._begun.clear()
        self._size = 0

    def _object(self, line: bytes) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except ValueError:
            raise UnexpectedAnswer(f"{self._what}: a line of the stream is no JSON") from None
        if not isinstance(value, dict):
            raise UnexpectedAnswer(f"{self._what}: a line of the stream is no JSON object")
        return value
