"""What our HTTP/1.1 parser reads from a stream of requests, held against llhttp (Node's parser, by httptools).

The rule: whatever we accept, llhttp accepts and frames the same way. We may refuse more. Where the two
see different requests in the same bytes, one of them can be made to smuggle past the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import httptools

from agentcube import http1

MESSAGES_MAX = 64


@dataclass
class Seen:
    """One request as a parser saw it; `whole` when its end was in the stream."""

    method: bytes = b""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)  # and trailers, as llhttp gives both
    body: bytes = b""
    whole: bool = False


def ours(stream: bytes) -> list[Seen]:
    """The requests that we accept, up to the first that we refuse, or that wants to be the last."""
    seen: list[Seen] = []
    while stream and len(seen) < MESSAGES_MAX:
        try:
            end = http1.request_end(stream)
            if end < 0:
                return seen
            head = http1.parse_request(stream[:end])
            stream = stream[end:]
            body, payload = http1.track(head.body), []
            taken = body.feed(stream, payload)
        except http1.ProtocolError:
            return seen
        stream = stream[taken:]
        fields = head.headers + (body.trailers if isinstance(body, http1.ChunkedBody) and body.done else [])
        seen.append(Seen(head.method, head.target, fields, b"".join(payload), body.done))
        if not body.done or not head.keep_alive or head.upgrade is not None:
            return seen
    return seen


class _Listener:
    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.parser: httptools.HttpRequestParser

    def on_message_begin(self) -> None:
        self.seen.append(Seen())

    def on_url(self, url: bytes) -> None:
        self.seen[-1].target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.seen[-1].headers.append((name.lower(), value.strip(b" \t")))

    def on_headers_complete(self) -> None:
        self.seen[-1].method = self.parser.get_method()

    def on_body(self, body: bytes) -> None:
        self.seen[-1].body += body

    def on_message_complete(self) -> None:
        self.seen[-1].whole = True


def theirs(stream: bytes) -> tuple[list[Seen], str]:
    """The requests that llhttp sees, and why it stopped ("" when it did not)."""
    listener = _Listener()
    parser = listener.parser = httptools.HttpRequestParser(listener)
    try:
        parser.feed_data(stream)
    except httptools.HttpParserUpgrade:
        return listener.seen, "upgrade"
    except httptools.HttpParserError as error:
        return listener.seen, f"{type(error).__name__}: {error}"
    return listener.seen, ""


def without_ignored_offers(stream: bytes) -> bytes:
    """`stream`, with those Upgrade fields renamed that come with a body: the Router ignores such an offer, and
    httptools would skip the body, which then nobody compared."""
    seen, rest = b"", stream
    for _ in range(MESSAGES_MAX):
        try:
            end = http1.request_end(rest)
            head = http1.parse_request(rest[:end]) if end >= 0 else None
            if head is None:
                break
            body = http1.track(head.body)
            offered = head.upgrade is not None and not body.done
            seen += _UPGRADE.sub(b"x-grade", rest[:end]) if offered else rest[:end]
            rest = rest[end:]
            taken = body.feed(rest, [])
        except http1.ProtocolError:
            break
        seen, rest = seen + rest[:taken], rest[taken:]
    return seen + rest


_UPGRADE = re.compile(rb"(?i)(?<=\n)upgrade(?=:)")


def disagreement(stream: bytes) -> str:
    """How the two differ in a way that matters, "" when they do not."""
    stream = without_ignored_offers(stream)
    mine = ours(stream)
    reference, reason = theirs(stream)
    for number, one in enumerate(mine):
        if number >= len(reference):
            return "" if _harmless(one, reason) else f"request {number}: accepted here; llhttp: {reason}"
        other = reference[number]
        if other.method == b"" and _harmless(one, reason):
            return ""  # llhttp stopped within this head, for a reason that frames nothing
        if (one.method, one.target) != (other.method, other.target):
            return (
                f"request {number}: {one.method!r} {one.target!r}, llhttp {other.method!r} {other.target!r}"
            )
        if one.headers != (other.headers if one.whole else other.headers[: len(one.headers)]):
            return f"request {number}: fields differ: {one.headers!r}, llhttp {other.headers!r}"
        if one.body != other.body and (one.whole or not one.body.startswith(other.body)):
            return f"request {number}: body {one.body!r}, llhttp {other.body!r}"
        if one.whole and not other.whole:
            return f"request {number}: ends here; llhttp: {reason or 'not yet'}"
        if other.whole and not one.whole:
            return f"request {number}: ends in llhttp and not here"
    return ""


def _harmless(one: Seen, reason: str) -> bool:
    """llhttp knows a list of methods, and takes some for other protocols (RTSP's, a HTTP/2 preface); any token
    is a method (RFC 9110 §9.1), and an unknown one frames nothing."""
    return "HttpParserInvalidMethodError" in reason or (one.method not in _LLHTTP_METHODS and bool(reason))


_LLHTTP_METHODS = frozenset(
    b"DELETE GET HEAD POST PUT CONNECT OPTIONS TRACE COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND "
    b"REBIND UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PATCH PURGE "
    b"MKCALENDAR LINK UNLINK SOURCE QUERY".split()
)
