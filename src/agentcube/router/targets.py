"""What a request target means. Pure; the raw path and query are passed on as they came."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from agentcube.errors import NotFound
from agentcube.model.ids import SessionId
from agentcube.model.template import Kind, TemplateKey
from agentcube.router.exposed import Hosts, Place, token_in
from agentcube.router.memo import Memo
from agentcube.router.problems import NoSuchRoute
from agentcube.wire.names import KINDS, SANDBOX_CALLS

if TYPE_CHECKING:
    from agentcube.router.heads import Request

_INVOCATIONS = b"/invocations"
_PREFIX_BYTES_MAX = (
    200  # names are DNS labels of at most 63 bytes; longer ones are nobody's and not remembered
)
_INVOCATION = re.compile(
    rb"/v1/namespaces/([^/?]+)/("
    + b"|".join(p.encode() for p in KINDS)
    + rb")/([^/?]+)/invocations(/.*|\?.*|)"
).fullmatch
_SANDBOX_CALL = re.compile(
    rb"/v1/sessions/([^/?]+)/((?:" + b"|".join(c.encode() for c in SANDBOX_CALLS) + rb")(?:[/?].*|))"
).fullmatch
_TCP = re.compile(rb"/v1/sessions/([^/?]+)/tcp/([1-9][0-9]{0,4})").fullmatch
_PORT = re.compile(rb"(/v1/sessions/([^/?]+)/ports/([1-9][0-9]{0,4}))(/.*)").fullmatch
_MANAGED = re.compile(
    rb"/(?:v1/(?:sessions|pools|code-interpreter|agent-runtime|namespaces))(?:[/?].*|)"
).fullmatch
_PUBLIC = re.compile(rb"/(?:openapi\.json|docs)(?:\?.*|)").fullmatch
_HEALTH = re.compile(rb"/health(|/live|/ready)(?:\?.*|)").fullmatch


class Invocation(NamedTuple):
    """A call of the sandbox of a session of this template. `path` includes the query."""

    key: TemplateKey
    path: bytes


class SandboxCall(NamedTuple):
    """A call of the PicoD of one session, named in the path."""

    session_id: SessionId
    path: bytes


class Tunnel(NamedTuple):
    """Raw bytes to a declared port of one session, by an upgrade to `tcp`."""

    session_id: SessionId
    port: int


class Exposed(NamedTuple):
    """A call of what listens on an exposed port. `prefix` is what was before `path`; b"" on the port's own host."""

    session_id: SessionId
    port: int
    path: bytes
    prefix: bytes = b""


class Exchange(NamedTuple):
    """A share link that is followed: its token, on the host of the port."""

    place: Place
    token: bytes


class Managed(NamedTuple):
    """A call of the management API; `public` is what tells nothing about anybody, for anybody."""

    public: bool = False


class Health(NamedTuple):
    """A question about the Router itself: "", "/live" or "/ready"."""

    probe: bytes


Inside = Invocation | SandboxCall | Exposed | Tunnel
Route = Inside | Exchange | Managed | Health

MANAGED = Managed()
PUBLIC = Managed(public=True)


class Routes:
    """Reads what requests ask for; remembers the templates that invocations name, of which there are few.

    Below `domain` every exposed port has a host of its own ("": none has).
    """

    __slots__ = ("_hosts", "_keys")

    def __init__(self, domain: str) -> None:
        self._hosts = Hosts(domain)
        self._keys: Memo[bytes, TemplateKey] = Memo(1024)

    def of(self, request: Request) -> Route:
        """What the request asks for. On the host of a port nothing else is served. Raises NoSuchRoute."""
        place = self._hosts.place(request.host)
        if not place:
            return self.route(request.target)
        if isinstance(place, str):
            raise NoSuchRoute(place)
        token = token_in(request.target)
        if token is not None:
            return Exchange(place, token)
        return Exposed(place.session_id, place.port, request.target)

    def route(self, target: bytes) -> Route:
        """The meaning of a request target on the API's own hosts.

        Raises:
            NoSuchRoute: nothing is served there.
        """
        at = target.find(_INVOCATIONS)
        if at > 0:
            key = self._keys.find(target[:at])
            path = target[at + len(_INVOCATIONS) :]
            if key is not None and path[:1] == b"/":
                return Invocation(key, path)
        return self._read(target)

    def _read(self, target: bytes) -> Route:
        if match := _INVOCATION(target):
            namespace, plural, name, path = match.groups()
            key = TemplateKey(Kind(KINDS[plural.decode()]), namespace.decode(), name.decode())
            if match.end(3) <= _PREFIX_BYTES_MAX:
                self._keys.put(target[: match.end(3)], key)
            return Invocation(key, path if path[:1] == b"/" else b"/" + path)
        if match := _SANDBOX_CALL(target):
            return SandboxCall(SessionId(match[1].decode()), b"/api/" + match[2])
        if match := _TCP(target):
            return Tunnel(SessionId(match[1].decode()), int(match[2]))
        if match := _PORT(target):
            return Exposed(SessionId(match[2].decode()), int(match[3]), match[4], match[1])
        if match := _HEALTH(target):
            return Health(match[1])
        if _PUBLIC(target):
            return PUBLIC
        if _MANAGED(target):
            return MANAGED
        raise NoSuchRoute("nothing is served at this path; the API is described at /openapi.json")


def longest_prefix(prefixes: tuple[bytes, ...], path: bytes) -> int:
    """The index of the longest of `prefixes` that `path` begins with; they are sorted longest first.

    A prefix is a plain string, as in the Go system: `/api` also takes `/apiary`.

    Raises:
        NotFound: none matches.
    """
    for index, prefix in enumerate(prefixes):
        if path.startswith(prefix):
            return index
    raise NotFound("no port of this session's template serves this path", reason="no_port_for_path")
