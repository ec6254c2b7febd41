"""What is particular to exposed ports: hosts of their own, share links, and what may cross. Pure.

The pages behind a port are hostile code's, and browsers show them. By host name each port is an origin of
its own. By path all of them, and the API, are one: their pages are put into opaque origins instead.
Decision 0023 says against whom each rule here stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from agentcube import http1
from agentcube.errors import Forbidden, Unauthenticated
from agentcube.model.ids import SessionId
from agentcube.ports.clock import Clock
from agentcube.ports.tokens import Link, LinkVerifier, Subject
from agentcube.router.memo import Memo
from agentcube.wire.names import SHARE_PARAMETER

if TYPE_CHECKING:
    from agentcube.model.session import Session
    from agentcube.router.heads import Request

OPAQUE = b"Content-Security-Policy: sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts\r\n"
"""Puts a page into an origin that no other page has, where it reads nothing of others and is nobody (CSP3)."""

COOKIE = SHARE_PARAMETER.encode()
SECURE_COOKIE = b"__Host-" + COOKIE
"""Browsers take it from this very host, over TLS, and from nobody else (RFC 6265bis §4.1.3.2)."""

_LABEL = re.compile(rb"([1-9][0-9]{0,4})-([a-z0-9]{1,57})").fullmatch  # 63 characters at most
_PARAMETER = COOKIE + b"="
_TOKEN_BYTES_MAX = 2048
_TOKENS_MAX = 4  # of one request that are looked at: a sibling host can add cookies of that name
_LINKS = 4096
_NO_FRAMES = b"Content-Security-Policy: frame-ancestors 'self'\r\n"
_BEYOND_ITS_PAGES = frozenset(
    (
        # What would hold for other origins or for more than the port's own pages.
        *(b"alt-svc", b"clear-site-data", b"nel", b"report-to", b"reporting-endpoints"),
        *(b"strict-transport-security", b"www-authenticate"),
    )
)
_BEYOND_ITS_PATH = _BEYOND_ITS_PAGES | {b"service-worker-allowed"}
_OWN_SITE = (b"same-origin", b"none")


class Place(NamedTuple):
    """A port of a session."""

    session_id: SessionId
    port: int


class Hosts:
    """Reads host names: `<port>-<session>.<domain>`, in any case, with or without a TCP port behind."""

    def __init__(self, domain: str) -> None:
        name = re.escape(domain.lower().encode("ascii"))
        self._below = (
            re.compile(rb"([^:]*\.)?([0-9][^.:]*)\." + name + rb"\.?(?::[0-9]*)?").fullmatch
            if domain
            else None
        )
        self._places: Memo[bytes, Place | str] = Memo(1024)

    def place(self, host: bytes) -> Place | str:
        """The port whose host that is; "" for every other host; text for one of ours that names no port."""
        place = self._places.find(host)
        if place is None:
            place = self._read(host.lower())
            if len(host) <= 256:
                self._places.put(host, place)
        return place

    def _read(self, host: bytes) -> Place | str:
        if self._below is None or (below := self._below(host)) is None:
            return ""
        named = _LABEL(below[2])
        # Below a port's host nothing answers: some clients take their credentials to such names.
        if below[1] or named is None or int(named[1]) > 65535:
            return "this host names no port of a session"
        return Place(SessionId(named[2].decode("ascii")), int(named[1]))


@dataclass(frozen=True, slots=True)
class Guest:
    """Who came by a share link. `subject` is one for each session: guests share what one caller may have."""

    link: Link
    subject: Subject

    def holds(self, session: Session, now: float) -> bool:
        """Whether the link is still good for what was opened with it."""
        return now < self.link.expires and session.exposed.get(self.link.port) == self.link.key


class Links:
    """Share links' tokens and what they say. Nothing of a request is believed before its token is verified."""

    def __init__(self, verifier: LinkVerifier, clock: Clock) -> None:
        self._verifier = verifier
        self._clock = clock
        self._known: Memo[bytes, Link] = Memo(_LINKS)

    @property
    def now(self) -> float:
        """Seconds since the epoch."""
        return self._clock.now().timestamp()

    def guest(self, token: bytes, place: Place) -> Guest | None:
        """Who has this token, if it is one of that port's and has not expired."""
        link = self._known.find(token)
        if link is None:
            if len(token) > _TOKEN_BYTES_MAX:
                return None
            try:
                link = self._verifier.link(token.decode("ascii"))
            except (Unauthenticated, UnicodeDecodeError):
                return None
            self._known.put(token, link)
        if (link.session, link.port) != place or self.now >= link.expires:
            return None
        return Guest(link, Subject(f"guest of {link.session}"))

    def find(self, request: Request, place: Place, *, secure: bool) -> list[Guest]:
        """Who a request to the port's own host may come from, by its cookies: some may hold no longer.

        Raises:
            Forbidden: a page of another origin made the browser send it.
        """
        if COOKIE not in request.kept:
            return []
        name = SECURE_COOKIE if secure else COOKIE
        tokens = [value for key, value in _cookies(request) if key == name]
        guests = [guest for token in tokens[:_TOKENS_MAX] if (guest := self.guest(token, place))]
        if guests:
            _refuse_other_pages(request)
        return guests


def _cookies(request: Request) -> Iterator[tuple[bytes, bytes]]:
    for line in request.kept.split(b"\r\n"):
        if line[:7].lower() == b"cookie:":
            for pair in line[7:].split(b";"):
                name, _, value = pair.strip(b" \t").partition(b"=")
                yield name, value


def _refuse_other_pages(request: Request) -> None:
    """SameSite does not tell hosts below one domain apart. Links that are followed are let in, frames are not."""
    said = {}
    for line in request.kept.split(b"\r\n")[:-1]:
        name, value = http1.parse_field(line)
        if name in (b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"):
            said[name] = value.lower()
    host = request.host.lower()
    origin = said.get(b"origin")
    if origin is not None and origin not in (b"http://" + host, b"https://" + host):
        raise Forbidden("a page of another origin may not use a port that was shared with its reader")
    if said.get(b"sec-fetch-site", b"none") in _OWN_SITE:
        return
    followed = said.get(b"sec-fetch-mode") == b"navigate" and said.get(b"sec-fetch-dest") == b"document"
    if not followed or request.method not in (b"GET", b"HEAD") or request.upgrade is not None:
        raise Forbidden("a page of another origin may not use a port that was shared with its reader")


# The exchange of a link for a cookie.


def token_in(target: bytes) -> bytes | None:
    """The token in a target's query, b"" when there is none in the parameter; None without the parameter."""
    if _PARAMETER not in target:
        return None
    for pair in target.partition(b"?")[2].split(b"&"):
        if pair.startswith(_PARAMETER):
            return pair[len(_PARAMETER) :]
    return None


def without_token(target: bytes) -> bytes:
    """The target on this very host, without the token. A path that begins like a host would lead elsewhere."""
    path, _, query = target.partition(b"?")
    rest = b"&".join(pair for pair in query.split(b"&") if not pair.startswith(_PARAMETER))
    return b"/" + path.lstrip(b"/\\") + (b"?" + rest if rest else b"")


def cookie(token: bytes, seconds: int, *, secure: bool) -> bytes:
    """The Set-Cookie that gives a browser the token, for this host alone and away from scripts."""
    name, more = (SECURE_COOKIE, b"; Secure") if secure else (COOKIE, b"")
    # Lax: a link that is followed from another site must bring it, at once after the exchange too.
    return b"%b=%b; Path=/; Max-Age=%d; HttpOnly; SameSite=Lax%b" % (name, token, seconds, more)


# What crosses.


def request_lines(kept: bytes, prefix: bytes) -> bytes:
    """A request's lines as the port gets them: without our cookies, and with where it is."""
    if COOKIE in kept:
        lines = [passed for line in kept.split(b"\r\n")[:-1] if (passed := _without_ours(line))]
        kept = b"\r\n".join((*lines, b""))
    return b"%bX-Forwarded-Prefix: %b\r\n" % (kept, prefix) if prefix else kept


def _without_ours(line: bytes) -> bytes:
    if line[:7].lower() != b"cookie:":
        return line
    pairs = [pair.strip(b" \t") for pair in line[7:].split(b";")]
    others = [pair for pair in pairs if pair and not _is_ours(pair)]
    return b"Cookie: " + b"; ".join(others) if others else b""


def _is_ours(pair: bytes) -> bool:
    return pair.partition(b"=")[0].strip(b" \t") in (COOKIE, SECURE_COOKIE)


def answer_head(head: bytes, prefix: bytes, *, guest: bool) -> bytes:
    """An answer's head without what holds beyond the port's own pages.

    By path, for an opaque origin; for a guest, to be seen in no other origin's frame.
    """
    dropped = _BEYOND_ITS_PATH if prefix else _BEYOND_ITS_PAGES
    first, *lines = head.split(b"\r\n")[:-1]
    kept = [first]
    for line in lines:
        name = line.partition(b":")[0].lower()
        if name == b"set-cookie":
            line = _confined(line[len(b"set-cookie:") :].strip(b" \t"), prefix)
        if line and name not in dropped:
            kept.append(line)
    more = OPAQUE if prefix else _NO_FRAMES if guest else b""
    return b"\r\n".join((*kept, b"")) + more


def _confined(value: bytes, prefix: bytes) -> bytes:
    """A Set-Cookie line for this host alone and, by path, for what is below `prefix`; b"" for one of ours."""
    pair, *attributes = [part.strip(b" \t") for part in value.split(b";")]
    if _is_ours(pair):
        return b""
    path, others = b"/", []
    for attribute in attributes:
        name, _, said = attribute.partition(b"=")
        name = name.strip(b" \t").lower()
        if name == b"path" and prefix:
            path = said.strip(b" \t")
        elif name != b"domain" and attribute:
            others.append(attribute)
    if prefix:
        below = (
            path if path == prefix or path.startswith(prefix + b"/") else prefix + b"/" + path.lstrip(b"/")
        )
        others.append(b"Path=" + below)
    return b"Set-Cookie: " + b"; ".join((pair, *others))
