"""Heads as they cross the Router: read once, unchanged lines kept as they came.

Pure. Most header lines repeat from request to request, so what a line means is remembered by the
whole line; the rules themselves are those of `agentcube.http1`, and a test holds that both agree.
"""

from __future__ import annotations

import re
from typing import Any

from agentcube import http1
from agentcube.model.ids import SessionId
from agentcube.router.memo import Memo
from agentcube.wire.names import ERROR_HEADER, REQUEST_ID_HEADER, SESSION_HEADER

_LINE_BYTES_MAX = 1024  # longer lines are read anew each time, which bounds the memory to 2 x 4096 x 1 KiB
_LINES = 4096
_BLOCK_BYTES_MAX = 2048  # of a connection's last head; 10,000 idle clients hold 20 MB with it

(
    _KEEP,
    _DROP,
    _AUTHORIZATION,
    _SESSION,
    _CONTENT_LENGTH,
    _TRANSFER_ENCODING,
    _CONNECTION,
    _HOST,
    _UPGRADE,
    _REQUEST_ID,
) = range(10)

_SESSION_NAME = SESSION_HEADER.encode()
_REQUEST_ID_NAME = REQUEST_ID_HEADER.encode()
_ERROR_NAME = ERROR_HEADER.encode()
_OWN_PREFIX = b"x-agentcube-"  # reserved: nobody else may speak in our name
CHUNKED_LINE = b"Transfer-Encoding: chunked"

_FRAMING = {
    b"content-length": _CONTENT_LENGTH,
    b"transfer-encoding": _TRANSFER_ENCODING,
    b"connection": _CONNECTION,
    b"upgrade": _UPGRADE,
}
_REQUEST_KINDS = {
    **dict.fromkeys(http1.HOP_BY_HOP, _DROP),
    **_FRAMING,
    b"authorization": _AUTHORIZATION,
    b"host": _HOST,
    _SESSION_NAME: _SESSION,
    _REQUEST_ID_NAME: _REQUEST_ID,
    # What we assert ourselves: the client's copies are no evidence of anything.
    b"forwarded": _DROP,
    b"x-forwarded-for": _DROP,
    b"x-forwarded-host": _DROP,
    b"x-forwarded-proto": _DROP,
    b"x-forwarded-prefix": _DROP,
    b"x-forwarded-port": _DROP,
    b"x-real-ip": _DROP,
    _ERROR_NAME: _DROP,
}
_ASSERTED = (_AUTHORIZATION, _HOST, _SESSION, _REQUEST_ID, _DROP)
FORBIDDEN_TRAILERS = http1.FORBIDDEN_TRAILERS | {n for n, kind in _REQUEST_KINDS.items() if kind in _ASSERTED}
"""What a client may not say behind its body either."""

_RESPONSE_KINDS = {
    **dict.fromkeys(http1.HOP_BY_HOP, _DROP),
    **_FRAMING,
    _SESSION_NAME: _SESSION,
    _REQUEST_ID_NAME: _DROP,
    _ERROR_NAME: _DROP,  # only ours: it tells our 404 from a sandbox's
}
_FLEETING = frozenset((b"traceparent", b"tracestate"))  # kept lines that never come again
_REQUEST_ID_OK = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}").fullmatch

# What a line means and the value that goes with that meaning: bytes, int, str or frozenset[bytes].
_Entry = tuple[int, Any]


class Request:
    """A request's head as the Router needs it."""

    __slots__ = (
        "authorization",
        "block",
        "body",
        "given_id",
        "host",
        "id",
        "keep_alive",
        "kept",
        "method",
        "minor",
        "session_id",
        "target",
        "upgrade",
    )

    method: bytes
    target: bytes
    minor: int
    block: bytes  # all behind the request line, to tell whether the next one says the same; b"" if too long
    kept: bytes  # the raw lines that pass on unchanged, each with its CRLF
    body: int  # length, or http1.CHUNKED
    keep_alive: bool
    upgrade: bytes | None
    session_id: SessionId | None
    authorization: bytes | None
    host: bytes
    given_id: bytes  # b"" when the client gave none that we accept
    id: bytes

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does what sending it once does (RFC 9110 §9.2.2), and can be done."""
        return self.body == 0 and self.upgrade is None and self.method in _IDEMPOTENT


_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))


def unread_request(id: bytes) -> Request:
    """What stands for a request whose head could not be read, so that it can be answered."""
    request = Request()
    request.method, request.target, request.minor = b"", b"", 1
    request.block, request.kept, request.body, request.keep_alive = b"", b"", 0, False
    request.upgrade = request.session_id = request.authorization = None
    request.host, request.given_id, request.id = b"", b"", id
    return request


class Answer:
    """A response's head. `head` is what passes on of it: status line and fields, each with its CRLF."""

    __slots__ = ("body", "head", "keep_alive", "status", "upgrade")

    status: int
    head: bytes
    body: int  # length, http1.CHUNKED or http1.UNTIL_CLOSE
    keep_alive: bool
    upgrade: bytes | None


def _classify(line: bytes, kinds: dict[bytes, int]) -> _Entry:
    name, value = http1.parse_field(line)
    kind = kinds.get(name, _KEEP)
    if kind == _CONTENT_LENGTH:
        return kind, http1.parse_content_length(value)
    if kind == _TRANSFER_ENCODING:
        http1.check_transfer_encoding(value)
    elif kind == _CONNECTION:
        return kind, http1.options(value)
    elif kind == _HOST:
        http1.check_host(value)
    elif kind == _SESSION:
        return kind, value.decode("latin-1")
    elif kind == _KEEP:
        return (_DROP, name) if name.startswith(_OWN_PREFIX) else (_KEEP, name)
    return kind, value


class Reader:
    """Reads heads, remembering what their lines mean. One per event loop."""

    __slots__ = ("_requests", "_responses", "_statuses")

    def __init__(self) -> None:
        self._statuses: Memo[bytes, tuple[int, int, bytes]] = Memo(128)
        self._requests: Memo[bytes, _Entry] = Memo(_LINES)
        self._responses: Memo[bytes, _Entry] = Memo(_LINES)

    def _request_line(self, line: bytes) -> _Entry:
        return self._requests.young.get(line) or _remember(self._requests, line, _REQUEST_KINDS)

    def _response_line(self, line: bytes) -> _Entry:
        return self._responses.young.get(line) or _remember(self._responses, line, _RESPONSE_KINDS)

    def request(self, head: bytes, previous: Request) -> Request:
        """The request that `head` (up to and with its empty line) makes.

        `previous` is the one before it on the same connection, over by now. Clients mostly say the
        same again: then `previous` itself is returned, with the new request line.

        Raises:
            ProtocolError: it must not be forwarded; the status is the one to answer.
        """
        first_end = head.find(b"\r\n")
        method, target, minor = http1.parse_request_line(head[:first_end])
        block = head[first_end:]
        if block == previous.block and minor == previous.minor:
            previous.method, previous.target = method, target
            return previous
        found = self._fields(http1.split_head(head), minor)
        found.method, found.target = method, target
        found.block = block if len(block) <= _BLOCK_BYTES_MAX else b""
        return found

    def _fields(self, lines: list[bytes], minor: int) -> Request:
        found = Request()
        del lines[0]
        kept: list[bytes] = []
        host = authorization = session = upgrade = length = None
        connection: frozenset[bytes] | None = None
        chunked = False
        found.given_id = b""
        known = self._requests.young.get
        for line in lines:
            kind, value = known(line) or _remember(self._requests, line, _REQUEST_KINDS)
            if kind == _KEEP:
                kept.append(line)
            elif kind == _DROP:
                pass
            elif kind == _AUTHORIZATION:
                if authorization is not None:
                    raise http1.duplicate("Authorization")
                authorization = value
            elif kind == _SESSION:
                if session is not None:
                    raise http1.duplicate(SESSION_HEADER)
                session = value
            elif kind == _HOST:
                if host is not None:
                    raise http1.duplicate("Host")
                host = value
            elif kind == _CONTENT_LENGTH:
                if length is not None:
                    raise http1.duplicate("Content-Length")
                length = value
                kept.append(line)
            elif kind == _TRANSFER_ENCODING:
                if chunked:
                    raise http1.duplicate("Transfer-Encoding")
                chunked = True
                kept.append(CHUNKED_LINE)
            elif kind == _CONNECTION:
                connection = value if connection is None else connection | value
            elif kind == _UPGRADE:
                upgrade = value if upgrade is None else b"%b, %b" % (upgrade, value)
            elif kind == _REQUEST_ID and _REQUEST_ID_OK(value):
                found.given_id = value
        if host is None:
            if minor == 1:
                raise http1.ProtocolError(400, "there must be exactly one Host")
            host = b""
        found.body = http1.request_body(minor, length, True) if chunked else length or 0
        found.minor = minor
        found.keep_alive = minor == 1
        found.upgrade = None
        found.host = host
        found.authorization = authorization
        found.session_id = session
        if connection is not None:
            kept = [line for line in kept if self._survives(self._request_line(line), connection)]
            self._apply_connection(found, connection, upgrade)
        found.kept = b"\r\n".join((*kept, b""))
        return found

    def _apply_connection(self, found: Request, connection: frozenset[bytes], upgrade: bytes | None) -> None:
        if b"close" in connection:
            found.keep_alive = False
        if b"upgrade" not in connection or upgrade is None or found.minor == 0:
            return
        # An HTTP/2 tunnel would carry requests past every check made here; ignoring the offer is
        # allowed (RFC 9110 §7.8).
        if b"h2c" not in http1.options(upgrade):
            found.upgrade = upgrade

    @staticmethod
    def _survives(entry: _Entry, connection: frozenset[bytes]) -> bool:
        return entry[0] != _KEEP or entry[1] not in connection

    def _status_line(self, line: bytes) -> tuple[int, int, bytes]:
        """Minor version, status, and the line as we pass it on."""
        minor, status, reason = http1.parse_status_line(line)
        passed = line if minor == 1 else b"HTTP/1.1 %d %b" % (status, reason)
        if len(line) <= _LINE_BYTES_MAX:
            self._statuses.put(line, (minor, status, passed))
        return minor, status, passed

    def answer(self, head: bytes, request: Request, *, own_session: bool) -> Answer:
        """The response that `head` makes to `request`; `own_session`: drop its session header.

        Raises:
            ProtocolError: 502; it must not be forwarded.
        """
        try:
            return self._answer(head, request, own_session)
        except http1.ProtocolError as error:
            raise http1.ProtocolError(502, error.detail) from None

    def _answer(self, head: bytes, request: Request, own_session: bool) -> Answer:
        lines = http1.split_head(head)
        found = Answer()
        minor, status, first = self._statuses.find(lines[0]) or self._status_line(lines[0])
        kept = [first]
        del lines[0]
        upgrade = length = None
        connection: frozenset[bytes] | None = None
        chunked = False
        bodiless = status == 204 or status < 200  # neither may carry framing (RFC 9112 §6)
        known = self._responses.young.get
        for line in lines:
            kind, value = known(line) or _remember(self._responses, line, _RESPONSE_KINDS)
            if kind == _KEEP:
                kept.append(line)
            elif kind == _DROP:
                pass
            elif kind == _CONTENT_LENGTH:
                if length is not None:
                    raise http1.duplicate("Content-Length")
                length = value
                if not bodiless:
                    kept.append(line)
            elif kind == _TRANSFER_ENCODING:
                if chunked:
                    raise http1.duplicate("Transfer-Encoding")
                chunked = True
                if not bodiless:
                    kept.append(CHUNKED_LINE)
            elif kind == _CONNECTION:
                connection = value if connection is None else connection | value
            elif kind == _UPGRADE:
                upgrade = value
            elif kind == _SESSION and not own_session:
                kept.append(line)
        found.status = status
        found.body = http1.response_body(request.method, status, minor, length, chunked)
        found.keep_alive = minor == 1
        found.upgrade = None
        if connection is not None:
            if b"close" in connection:
                found.keep_alive = False
            if b"upgrade" in connection:
                found.upgrade = upgrade
            kept[1:] = [line for line in kept[1:] if self._survives(self._response_line(line), connection)]
        if chunked and request.minor == 0 and not bodiless:
            raise http1.ProtocolError(502, "a chunked answer to an HTTP/1.0 request")
        found.head = b"\r\n".join((*kept, b""))
        return found


def _remember(memo: Memo[bytes, _Entry], line: bytes, kinds: dict[bytes, int]) -> _Entry:
    """What a line means that is not in `memo.young`."""
    entry = memo.recall(line)
    if entry is None:
        entry = _classify(line, kinds)
        if len(line) <= _LINE_BYTES_MAX and entry[1] not in _FLEETING:
            memo.put(line, entry)
    return entry
