"""Lines of a head: which ones mean something to the Router, and what they say. Pure.

Names repeat from request to request, and so do most lines that mean something: what they mean is remembered.
A line that only passes on is known by its name, whatever it says.
"""

from __future__ import annotations

from typing import Any, cast

from agentcube import http1
from agentcube.router.memo import Memo

_LINE_BYTES_MAX = 1024  # longer lines are read anew each time, which bounds the memory to 2 x 4096 x 1 KiB
_LINES = 4096
_NAME_BYTES_MAX = 64
_NAMES = 1024
OWN_PREFIX = b"x-agentcube-"  # reserved: nobody else may speak in our name
TEXT = bytes(byte for byte in range(256) if byte == 0x09 or 0x20 <= byte != 0x7F)
"""What the lines of a head are made of."""

(
    KEEP,
    DROP,
    AUTHORIZATION,
    SESSION,
    CONTENT_LENGTH,
    TRANSFER_ENCODING,
    CONNECTION,
    HOST,
    UPGRADE,
    REQUEST_ID,
    FORWARDED,
    FIRST,  # the line that is no field
) = range(12)


Value = Any
"""What a line says, as its kind wants it: bytes, int, str, frozenset[bytes] or a field."""


def _read(line: bytes, kind: int) -> Value:
    """What a line says that means something to us."""
    name, value = http1.parse_field(line)
    if kind == CONTENT_LENGTH:
        return http1.parse_content_length(value)
    if kind == TRANSFER_ENCODING:
        http1.check_transfer_encoding(value)
    elif kind == CONNECTION:
        return http1.options(value)
    elif kind == HOST:
        http1.check_host(value)
    elif kind == SESSION:
        return value.decode("latin-1")
    elif kind == FORWARDED:
        return name, value
    return value


class Lines:
    """What the lines of requests, or those of responses, mean."""

    __slots__ = ("_kinds", "_names", "_values")

    def __init__(self, kinds: dict[bytes, int]) -> None:
        self._kinds = kinds
        self._names: Memo[bytes, int] = Memo(_NAMES)  # with their colon, as they came; all of them sound
        self._values: Memo[bytes, Value] = Memo(_LINES)

    def split(self, head: bytes) -> tuple[list[bytes], list[int]]:
        """The lines of `head`, the first apart from the others' kinds.

        Raises:
            ProtocolError: 400 or 431; a line is none.
        """
        lines = http1.split_head(head)
        if head.translate(None, TEXT) != b"\r\n" * (len(lines) + 1):
            for line in lines[1:]:
                http1.parse_field(line)  # raises, and says why
            raise http1.ProtocolError(400, "a control byte in the head")
        known = self._names.young.get
        found = [known(line[: line.find(b":") + 1]) for line in lines]
        found[0] = FIRST
        if None in found:
            found = [
                self._kind(line) if kind is None else kind for line, kind in zip(lines, found, strict=True)
            ]
        return lines, cast("list[int]", found)

    def _kind(self, line: bytes) -> int:
        start = line[: line.find(b":") + 1]
        kind = self._names.recall(start)
        if kind is None:
            name, _ = http1.parse_field(line)
            kind = self._kinds.get(name, KEEP)
            if kind == KEEP and name.startswith(OWN_PREFIX):
                kind = DROP
            if len(start) <= _NAME_BYTES_MAX:
                self._names.put(start, kind)
        return kind

    def value(self, line: bytes, kind: int) -> Value:
        """What a line of such a kind says. Raises ProtocolError."""
        value = self._values.find(line)
        if value is None:
            value = _read(line, kind)
            if kind != REQUEST_ID and len(line) <= _LINE_BYTES_MAX:  # one that never comes again is not kept
                self._values.put(line, value)
        return value

    def without(self, lines: list[bytes], connection: frozenset[bytes]) -> list[bytes]:
        """Those that a Connection field with these options leaves (RFC 9110 §7.6.1)."""
        named = {name for name in connection if self._kinds.get(name, KEEP) == KEEP}
        return [line for line in lines if line[: line.find(b":")].lower() not in named]
