"""Request and response heads: where one ends, and what it says.

Two uses. A proxy finds the end, splits the lines and looks at each itself (`request_end`,
`parse_request_line`, `parse_field`, `request_body`), so that unchanged lines are passed on as they
came. A server or client wants the whole thing at once (`parse_request`, `parse_response`).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from agentcube.http1.errors import ProtocolError
from agentcube.http1.fields import (
    TOKEN,
    check_host,
    check_transfer_encoding,
    duplicate,
    options,
    parse_content_length,
    parse_field,
)

HEAD_BYTES_MAX = 64 * 1024
"""Longest head. 8 KiB is common (nginx, Apache); agents carry long cookies and tokens."""

HEADERS_MAX = 100
"""Most field lines in a head (the default of Apache's LimitRequestFields)."""

CHUNKED = -1
"""Body length of a message whose end its chunks tell."""

UNTIL_CLOSE = -2
"""Body length of a response that ends when the connection does."""

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([!-~]+) HTTP/1\.([01])").fullmatch
_OTHER_VERSION = re.compile(TOKEN + rb" [!-~]+ HTTP/[0-9](?:\.[0-9])?").fullmatch
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t -~\x80-\xff]*))?").fullmatch
# What no byte of a head may be: a control byte, a LF without its CR, a CR without its LF.
_BAD_BYTE = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)").search


class RequestHead(NamedTuple):
    """A request head. Header names are lower case, order and repeats are kept."""

    method: bytes
    target: bytes
    minor: int  # HTTP/1.<minor>
    headers: list[tuple[bytes, bytes]]
    body: int  # length, or CHUNKED
    keep_alive: bool
    expect_continue: bool
    upgrade: bytes | None  # the Upgrade field, when Connection names it

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return _first(self.headers, name)


class ResponseHead(NamedTuple):
    """A response head. Header names are lower case, order and repeats are kept."""

    status: int
    reason: bytes
    minor: int
    headers: list[tuple[bytes, bytes]]
    body: int  # length, CHUNKED or UNTIL_CLOSE
    keep_alive: bool
    upgrade: bytes | None

    def get(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return _first(self.headers, name)


def _first(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    for key, value in headers:
        if key == name:
            return value
    return None


def request_end(data: bytes, searched: int = 0, *, limit: int = HEAD_BYTES_MAX) -> int:
    """The offset just behind the head's empty line, or -1 when more bytes are needed.

    `searched` is how many bytes of `data` an earlier call has seen, so that a head that comes byte
    by byte costs linear time. An incomplete head is judged as far as it goes: a bare LF, a control
    byte or a bad request line (HTTP/0.9) is refused at once rather than waited for.

    Raises:
        ProtocolError: 431 over `limit` bytes; 400 or 505 as said above.
    """
    end = data.find(b"\r\n\r\n", searched - 3 if searched > 3 else 0) + 4
    if 4 <= end <= limit:
        return end
    _check_unfinished(data, searched, limit)
    line = data.find(b"\r\n")
    if line >= 0 and searched <= line + 2:
        parse_request_line(data[:line])
    return -1


def response_end(data: bytes, searched: int = 0, *, limit: int = HEAD_BYTES_MAX) -> int:
    """As `request_end`, for a response; errors have status 502."""
    end = data.find(b"\r\n\r\n", searched - 3 if searched > 3 else 0) + 4
    if 4 <= end <= limit:
        return end
    try:
        _check_unfinished(data, searched, limit)
    except ProtocolError as error:
        raise ProtocolError(502, error.detail) from None
    return -1


def _check_unfinished(data: bytes, searched: int, limit: int) -> None:
    """Judge a head whose end is not within `limit`, or not here yet."""
    if len(data) > limit:
        raise ProtocolError(431, "the head is too large")
    if _BAD_BYTE(data, max(0, searched - 1)) is not None:
        raise ProtocolError(400, "a control byte, bare CR or bare LF in the head")


def parse_request_line(line: bytes) -> tuple[bytes, bytes, int]:
    """Method, target and minor version.

    The target is in origin form (it begins with `/`), or `*` for OPTIONS: we are an origin to our
    clients, never a forward proxy.

    Raises:
        ProtocolError: 400 for a malformed line, HTTP/0.9, a fragment, absolute or authority form;
            501 for CONNECT; 505 for another version of HTTP.
    """
    match = _REQUEST_LINE(line)
    if match is None:
        if _OTHER_VERSION(line) is not None:
            raise ProtocolError(505, "the version of HTTP is not 1.0 or 1.1")
        raise ProtocolError(400, "malformed request line")
    method, target, minor = match.groups()
    if method == b"CONNECT":
        raise ProtocolError(501, "CONNECT is not understood")
    if target[0] != 0x2F and not (target == b"*" and method == b"OPTIONS"):
        raise ProtocolError(400, "the target does not begin with /")
    if b"#" in target:
        raise ProtocolError(400, "a fragment in the target")
    return method, target, int(minor)


def parse_status_line(line: bytes) -> tuple[int, int, bytes]:
    """Minor version, status and reason. Raises ProtocolError 502."""
    match = _STATUS_LINE(line)
    if match is None:
        raise ProtocolError(502, "malformed status line")
    minor, status, reason = match.groups()
    return int(minor), int(status), reason or b""


def split_head(head: bytes) -> list[bytes]:
    """The lines of a whole head, which ends with its empty line. ProtocolError 431 for too many."""
    lines = head[:-4].split(b"\r\n")
    if len(lines) > HEADERS_MAX + 1:
        raise ProtocolError(431, "too many headers")
    return lines


def request_body(minor: int, content_length: int | None, chunked: bool) -> int:
    """Length of a request's body, or CHUNKED (RFC 9112 §6.3).

    Raises:
        ProtocolError: 400 when both fields are there, or Transfer-Encoding came with HTTP/1.0.
    """
    if not chunked:
        return content_length or 0
    if content_length is not None:
        raise ProtocolError(400, "both Content-Length and Transfer-Encoding")
    if minor == 0:
        raise ProtocolError(400, "Transfer-Encoding in HTTP/1.0")
    return CHUNKED


def response_body(method: bytes, status: int, minor: int, content_length: int | None, chunked: bool) -> int:
    """Length of a response's body, CHUNKED or UNTIL_CLOSE (RFC 9112 §6.3).

    Raises:
        ProtocolError: 502 when both fields are there, or Transfer-Encoding came with HTTP/1.0.
    """
    if chunked and (content_length is not None or minor == 0):
        raise ProtocolError(502, "ambiguous framing of the response")
    if method == b"HEAD" or status < 200 or status == 204 or status == 304:
        return 0
    if chunked:
        return CHUNKED
    return UNTIL_CLOSE if content_length is None else content_length


class _Fields(NamedTuple):
    headers: list[tuple[bytes, bytes]]
    content_length: int | None
    chunked: bool
    connection: frozenset[bytes]
    hosts: int


def _parse_fields(lines: list[bytes]) -> _Fields:
    headers = []
    content_length: int | None = None
    chunked = False
    connection: frozenset[bytes] = frozenset()
    hosts = 0
    for line in lines:
        name, value = field = parse_field(line)
        headers.append(field)
        if name == b"content-length":
            if content_length is not None:
                raise duplicate("Content-Length")
            content_length = parse_content_length(value)
        elif name == b"transfer-encoding":
            if chunked:
                raise duplicate("Transfer-Encoding")
            check_transfer_encoding(value)
            chunked = True
        elif name == b"connection":
            connection |= options(value)
        elif name == b"host":
            check_host(value)
            hosts += 1
    return _Fields(headers, content_length, chunked, connection, hosts)


def _keeps_alive(minor: int, connection: frozenset[bytes]) -> bool:
    return b"close" not in connection and (minor == 1 or b"keep-alive" in connection)


def parse_request(head: bytes) -> RequestHead:
    """A whole request head, from its first byte to its empty line (see `request_end`).

    Raises:
        ProtocolError: with the status to answer; the connection must be closed then.
    """
    first, *lines = split_head(head)
    method, target, minor = parse_request_line(first)
    fields = _parse_fields(lines)
    if fields.hosts > 1 or (fields.hosts == 0 and minor == 1):
        raise ProtocolError(400, "there must be exactly one Host")
    expect = _first(fields.headers, b"expect") or b""
    return RequestHead(
        method=method,
        target=target,
        minor=minor,
        headers=fields.headers,
        body=request_body(minor, fields.content_length, fields.chunked),
        keep_alive=_keeps_alive(minor, fields.connection),
        expect_continue=minor == 1 and expect.lower() == b"100-continue",
        upgrade=_first(fields.headers, b"upgrade") if b"upgrade" in fields.connection else None,
    )


def parse_response(head: bytes, method: bytes) -> ResponseHead:
    """A whole response head; `method` is that of the request it answers.

    Raises:
        ProtocolError: 502, always.
    """
    try:
        first, *lines = split_head(head)
        minor, status, reason = parse_status_line(first)
        fields = _parse_fields(lines)
    except ProtocolError as error:
        raise ProtocolError(502, error.detail) from None
    return ResponseHead(
        status=status,
        reason=reason,
        minor=minor,
        headers=fields.headers,
        body=response_body(method, status, minor, fields.content_length, fields.chunked),
        keep_alive=_keeps_alive(minor, fields.connection),
        upgrade=_first(fields.headers, b"upgrade") if b"upgrade" in fields.connection else None,
    )
