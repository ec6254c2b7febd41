"""Heads as they cross the Router: read once, unchanged lines kept as they came.

Pure. The rules themselves are those of `agentcube.http1`, and a test holds that both agree.
"""

from __future__ import annotations

import re

from agentcube import http1
from agentcube.model.ids import SessionId
from agentcube.router.lines import (
    AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    DROP,
    FIRST,
    FORWARDED,
    HOST,
    KEEP,
    REQUEST_ID,
    SESSION,
    TRANSFER_ENCODING,
    UPGRADE,
    Lines,
)
from agentcube.router.memo import Memo
from agentcube.router.repeats import BLOCK_BYTES_MAX, Changing, joined, repeats
from agentcube.wire.names import ERROR_HEADER, REQUEST_ID_HEADER, SESSION_HEADER

_STATUS_BYTES_MAX = 1024  # longer ones are read anew each time

_SESSION_NAME = SESSION_HEADER.encode()
_REQUEST_ID_NAME = REQUEST_ID_HEADER.encode()
_ERROR_NAME = ERROR_HEADER.encode()
CHUNKED_LINE = b"Transfer-Encoding: chunked"

_FRAMING = {
    b"content-length": CONTENT_LENGTH,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"connection": CONNECTION,
    b"upgrade": UPGRADE,
}
_REQUEST_KINDS = {
    **dict.fromkeys(http1.HOP_BY_HOP, DROP),
    **_FRAMING,
    b"authorization": AUTHORIZATION,
    b"host": HOST,
    _SESSION_NAME: SESSION,
    _REQUEST_ID_NAME: REQUEST_ID,
    # What we assert ourselves: the client's copies are no evidence of anything.
    b"forwarded": DROP,
    b"x-forwarded-for": FORWARDED,
    b"x-forwarded-host": FORWARDED,
    b"x-forwarded-proto": FORWARDED,
    b"x-forwarded-prefix": DROP,
    b"x-forwarded-port": DROP,
    b"x-real-ip": DROP,
    _ERROR_NAME: DROP,
}
_ASSERTED = (AUTHORIZATION, HOST, SESSION, REQUEST_ID, FORWARDED, DROP)
FORBIDDEN_TRAILERS = http1.FORBIDDEN_TRAILERS | {n for n, kind in _REQUEST_KINDS.items() if kind in _ASSERTED}
"""What a client may not say behind its body either."""

_RESPONSE_KINDS = {
    **dict.fromkeys(http1.HOP_BY_HOP, DROP),
    **_FRAMING,
    _SESSION_NAME: SESSION,
    _REQUEST_ID_NAME: DROP,
    _ERROR_NAME: DROP,  # only ours: it tells our 404 from a sandbox's
}
_REQUEST_ID_OK = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}").fullmatch


class Request:
    """A request's head as the Router needs it."""

    __slots__ = (
        "authorization",
        "block",
        "body",
        "changing",
        "forwarded",
        "given_id",
        "host",
        "id",
        "keep_alive",
        "kept",
        "kept_at",
        "kinds",
        "lines",
        "method",
        "minor",
        "scheme",
        "session_id",
        "target",
        "upgrade",
    )

    method: bytes
    target: bytes
    minor: int
    block: bytes  # all behind the request line, to tell whether the next one says the same; b"" if too long
    lines: list[bytes]  # those of `block`, beginning with the empty one; [] if they were not worth keeping
    kinds: list[int]  # theirs
    kept_at: list[int]  # which of them pass on
    kept: bytes  # the raw lines that pass on unchanged, each with its CRLF
    changing: Changing | None  # what differs from request to request, as far as that was seen
    body: int  # length, or http1.CHUNKED
    keep_alive: bool
    upgrade: bytes | None
    session_id: SessionId | None
    authorization: bytes | None
    host: bytes
    forwarded: list[tuple[bytes, bytes]]  # what a proxy said of the client, to believe or not
    scheme: bytes  # that the client used, as far as that is known: set by whoever reads the request
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
    request.lines, request.kinds, request.kept_at, request.changing = [], [], [], None
    request.upgrade = request.session_id = request.authorization = None
    request.host, request.forwarded, request.given_id, request.id = b"", [], b"", id
    return request


class Answer:
    """A response's head. `head` is what passes on of it: status line and fields, each with its CRLF."""

    __slots__ = ("body", "head", "keep_alive", "status", "upgrade")

    status: int
    head: bytes
    body: int  # length, http1.CHUNKED or http1.UNTIL_CLOSE
    keep_alive: bool
    upgrade: bytes | None


class Reader:
    """Reads heads, remembering what their lines mean. One per event loop."""

    __slots__ = ("_requests", "_responses", "_statuses")

    def __init__(self) -> None:
        self._statuses: Memo[bytes, tuple[int, int, bytes]] = Memo(128)
        self._requests = Lines(_REQUEST_KINDS)
        self._responses = Lines(_RESPONSE_KINDS)

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
        if minor == previous.minor and (block == previous.block or repeats(previous, block)):
            previous.method, previous.target = method, target
            return previous
        found = self._fields(head, minor)
        found.method, found.target = method, target
        found.block = block if len(block) <= BLOCK_BYTES_MAX else b""
        if not previous.block or not found.block:
            found.lines = []  # whether this client's lines change is not known yet, and they take room
        return found

    def _fields(self, head: bytes, minor: int) -> Request:
        lines, kinds = self._requests.split(head)
        found = Request()
        found.lines, found.kinds = lines, kinds
        found.kept_at = kept_at = []
        lines[0] = b""
        host = authorization = session = upgrade = length = None
        connection: frozenset[bytes] | None = None
        chunked = False
        found.given_id = b""
        found.changing = None
        found.forwarded = []
        for at, kind in enumerate(kinds):
            if kind == KEEP:
                kept_at.append(at)
                continue
            if kind in (DROP, FIRST):
                continue
            value = self._requests.value(lines[at], kind)
            if kind == AUTHORIZATION:
                if authorization is not None:
                    raise http1.duplicate("Authorization")
                authorization = value
            elif kind == SESSION:
                if session is not None:
                    raise http1.duplicate(SESSION_HEADER)
                session = value
            elif kind == HOST:
                if host is not None:
                    raise http1.duplicate("Host")
                host = value
            elif kind == CONTENT_LENGTH:
                if length is not None:
                    raise http1.duplicate("Content-Length")
                length = value
                kept_at.append(at)
            elif kind == TRANSFER_ENCODING:
                if chunked:
                    raise http1.duplicate("Transfer-Encoding")
                chunked = True
                lines[at] = CHUNKED_LINE
                kept_at.append(at)
            elif kind == CONNECTION:
                connection = value if connection is None else connection | value
            elif kind == UPGRADE:
                upgrade = value if upgrade is None else b"%b, %b" % (upgrade, value)
            elif kind == FORWARDED:
                found.forwarded.append(value)
            elif kind == REQUEST_ID and _REQUEST_ID_OK(value):
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
            left = set(self._requests.without([lines[at] for at in kept_at], connection))
            found.kept_at = kept_at = [at for at in kept_at if lines[at] in left]
            self._apply_connection(found, connection, upgrade)
        found.kept = joined(lines, kept_at)
        return found

    def _apply_connection(self, found: Request, connection: frozenset[bytes], upgrade: bytes | None) -> None:
        if b"close" in connection:
            found.keep_alive = False
        if b"upgrade" not in connection or upgrade is None or found.minor == 0:
            return
        # Ignoring an offer is allowed (RFC 9110 §7.8). With a body servers disagree where the new protocol
        # begins (httptools': before it); an HTTP/2 tunnel would carry requests past every check made here.
        if not found.body and b"h2c" not in http1.options(upgrade):
            found.upgrade = upgrade

    def _status_line(self, line: bytes) -> tuple[int, int, bytes]:
        """Minor version, status, and the line as we pass it on."""
        minor, status, reason = http1.parse_status_line(line)
        passed = line if minor == 1 else b"HTTP/1.1 %d %b" % (status, reason)
        if len(line) <= _STATUS_BYTES_MAX:
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
        lines, kinds = self._responses.split(head)
        found = Answer()
        minor, status, first = self._statuses.find(lines[0]) or self._status_line(lines[0])
        kept: list[bytes] = []
        upgrade = length = None
        connection: frozenset[bytes] | None = None
        chunked = False
        bodiless = status == 204 or status < 200  # neither may carry framing (RFC 9112 §6)
        for line, kind in zip(lines, kinds, strict=True):
            if kind == KEEP:
                kept.append(line)
                continue
            if kind in (DROP, FIRST):
                continue
            value = self._responses.value(line, kind)
            if kind == CONTENT_LENGTH:
                if length is not None:
                    raise http1.duplicate("Content-Length")
                length = value
                if not bodiless:
                    kept.append(line)
            elif kind == TRANSFER_ENCODING:
                if chunked:
                    raise http1.duplicate("Transfer-Encoding")
                chunked = True
                if not bodiless:
                    kept.append(CHUNKED_LINE)
            elif kind == CONNECTION:
                connection = value if connection is None else connection | value
            elif kind == UPGRADE:
                upgrade = value
            elif kind == SESSION and not own_session:
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
            kept = self._responses.without(kept, connection)
        if chunked and request.minor == 0 and not bodiless:
            raise http1.ProtocolError(502, "a chunked answer to an HTTP/1.0 request")
        found.head = b"\r\n".join((first, *kept, b""))
        return found
