"""Where a body ends, told from raw bytes as they pass; the same for requests and responses.

A tracker neither copies nor keeps the body. `feed(data)` says how many of the bytes belong to this
message (the rest is the next one's) and, where asked, hands out the payload without its framing.
"""

from __future__ import annotations

import re
import sys
from typing import Union

from agentcube.http1.errors import ProtocolError
from agentcube.http1.fields import HOP_BY_HOP, TOKEN, parse_field
from agentcube.http1.heads import CHUNKED, HEADERS_MAX, UNTIL_CLOSE

CHUNK_LINE_MAX = 1024
"""Longest chunk-size line with its extensions (which nobody uses: RFC 9112 §7.1.1)."""

TRAILER_BYTES_MAX = 16 * 1024
"""Longest trailer section."""

FORBIDDEN_TRAILERS = HOP_BY_HOP | {
    b"content-length",
    b"content-type",
    b"content-encoding",
    b"content-range",
    b"host",
    b"authorization",
    b"cookie",
    b"set-cookie",
    b"trailer",
}
"""Fields that frame, route or authorise may not come as trailers (RFC 9110 §6.5.1)."""

# Extensions to the letter (RFC 9112 §7.1.1) and without white space: parsers that disagree about what else
# may stand there can be made to disagree about where the line ends.
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_EXTENSION = rb"(?:;" + TOKEN + rb"(?:=(?:" + TOKEN + rb"|" + _QUOTED + rb"))?)*"
# 15 hexadecimal digits fit a signed 64-bit integer.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})" + _EXTENSION + rb"\r\n").fullmatch
_PLAIN_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})\r\n").match  # what nearly all chunks begin with
_SIZE_START = re.compile(rb"[0-9A-Fa-f]{0,15}(?:(?<=[0-9A-Fa-f]);[\t -~\x80-\xff]*)?\r?").fullmatch

_SIZE, _DATA, _DATA_END, _TRAILER, _DONE = range(5)


class LengthBody:
    """A body of known length."""

    __slots__ = ("left",)

    def __init__(self, length: int) -> None:
        self.left = length

    @property
    def done(self) -> bool:
        """Whether the whole message has passed."""
        return self.left == 0

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """How many of `data` belong to this body; they are appended to `payload` if given."""
        taken = min(self.left, len(data))
        self.left -= taken
        if payload is not None and taken:
            payload.append(data[:taken])
        return taken


class CloseBody:
    """A response's body that ends with the connection."""

    __slots__ = ()
    done = False

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """All of `data`."""
        if payload is not None and data:
            payload.append(data)
        return len(data)


class ChunkedBody:
    """A chunked body, with every byte of its framing checked (RFC 9112 §7.1).

    `forbidden` are lower-case names that may not come as trailers. Errors have `status`, 400 for a
    server and 502 for a client. One `feed` looks at `lines_max` chunks at most: forty thousand of them
    fit into a quarter of a megabyte.
    """

    __slots__ = (
        "_forbidden",
        "_left",
        "_line",
        "_lines_max",
        "_state",
        "_status",
        "_trailer_bytes",
        "trailers",
    )

    def __init__(
        self,
        *,
        status: int = 400,
        forbidden: frozenset[bytes] = FORBIDDEN_TRAILERS,
        lines_max: int = sys.maxsize,
    ) -> None:
        self._lines_max = lines_max
        self._status = status
        self._forbidden = forbidden
        self._state = _SIZE
        self._left = 0  # bytes of the current chunk to come
        self._line = b""  # what came of an incomplete line
        self._trailer_bytes = 0
        self.trailers: list[tuple[bytes, bytes]] = []

    @property
    def done(self) -> bool:
        """Whether the whole message has passed, trailers included."""
        return self._state == _DONE

    def feed(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """How many of `data` belong to this body; the chunks' content is appended to `payload`.

        Fewer than all although not `done`: `lines_max` was reached, and the rest wants to be fed again.

        Raises:
            ProtocolError: a bad size, a chunk that does not end with CRLF, a line or trailer
                section over its bound, a malformed or forbidden trailer.
        """
        position, end, lines = 0, len(data), self._lines_max
        while position < end and lines > 0 and self._state != _DONE:
            if self._state == _SIZE and not self._line:
                position, lines = self._whole_chunks(data, position, payload, lines)
                if position == end or lines == 0 or self._state == _DONE:
                    break
            if self._state == _DATA:
                taken = min(self._left, end - position)
                if payload is not None:
                    payload.append(data[position : position + taken])
                position += taken
                self._left -= taken
                if self._left == 0:
                    self._state = _DATA_END
                continue
            newline = data.find(b"\n", position, position + CHUNK_LINE_MAX + TRAILER_BYTES_MAX)
            if newline < 0:
                self._keep(data[position:])
                return end
            line = data[position : newline + 1]
            if self._line:
                line, self._line = self._line + line, b""
            position = newline + 1
            lines -= 1
            self._on_line(line)
        return position

    def _whole_chunks(
        self, data: bytes, position: int, payload: list[bytes] | None, lines: int
    ) -> tuple[int, int]:
        """Pass over chunks that are plain and all here, and over the end; where that stops, and lines left."""
        while lines and (match := _PLAIN_SIZE(data, position)) is not None:
            start, size = match.end(), int(match.group(1), 16)
            behind = start + size
            if data[behind : behind + 2] != b"\r\n":
                break
            if payload is not None and size:
                payload.append(data[start:behind])
            position = behind + 2
            lines -= 1
            if not size:
                self._state = _DONE
                break
        return position, lines

    def _keep(self, part: bytes) -> None:
        self._line += part
        line = self._line
        if self._state == _TRAILER:
            if self._trailer_bytes + len(line) > TRAILER_BYTES_MAX:
                raise self._error("the trailers are too large")
        elif self._state == _DATA_END:
            if line != b"\r":
                raise self._error("a chunk does not end with CRLF")
        elif len(line) > CHUNK_LINE_MAX or _SIZE_START(line) is None:
            raise self._error("malformed chunk size")

    def _on_line(self, line: bytes) -> None:
        if self._state == _SIZE:
            match = _SIZE_LINE(line)
            if match is None or len(line) > CHUNK_LINE_MAX:
                raise self._error("malformed chunk size")
            self._left = int(match.group(1), 16)
            self._state = _DATA if self._left else _TRAILER
        elif self._state == _DATA_END:
            if line != b"\r\n":
                raise self._error("a chunk does not end with CRLF")
            self._state = _SIZE
        elif line == b"\r\n":
            self._state = _DONE
        else:
            self._on_trailer(line)

    def _on_trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if self._trailer_bytes > TRAILER_BYTES_MAX or len(self.trailers) >= HEADERS_MAX:
            raise self._error("the trailers are too large")
        if line[-2:] != b"\r\n":
            raise self._error("a bare LF in the trailers")
        try:
            field = parse_field(line[:-2])
        except ProtocolError as error:
            raise self._error(error.detail) from None
        if field[0] in self._forbidden:
            raise self._error("a field that may not be a trailer")
        self.trailers.append(field)

    def _error(self, detail: str) -> ProtocolError:
        return ProtocolError(self._status, detail)


Body = Union[LengthBody, ChunkedBody, CloseBody]


def track(
    length: int,
    *,
    status: int = 400,
    forbidden: frozenset[bytes] = FORBIDDEN_TRAILERS,
    lines_max: int = sys.maxsize,
) -> Body:
    """The tracker for a `body` as `parse_request` and `parse_response` give it."""
    if length == CHUNKED:
        return ChunkedBody(status=status, forbidden=forbidden, lines_max=lines_max)
    if length == UNTIL_CLOSE:
        return CloseBody()
    return LengthBody(length)
