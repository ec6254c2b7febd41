"""Where a request goes, when that can be told at once. What needs waiting is `slow`'s."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agentcube.errors import Unauthenticated
from agentcube.model.template import TemplateKey
from agentcube.ports.tokens import ANONYMOUS, Subject
from agentcube.router import targets
from agentcube.router.exposed import Guest, Place
from agentcube.router.pages import refuse_pages
from agentcube.router.sessions import Entry, Port
from agentcube.wire.names import IDEMPOTENCY_HEADER, KEY_CHARS_MAX

if TYPE_CHECKING:
    from agentcube.router.engine import Engine
    from agentcube.router.heads import Request


_ASIDE = (
    targets.Exchange,
    targets.Tunnel,
)  # what `slow` answers; written out, as `A | B` is made anew each time
_BY_ID = (targets.SandboxCall, targets.Exposed)


class Destination:
    """A port, and what the request says there. `entry` is None for the manager.

    `called`: it is a call of PicoD, which somebody waits for as long as it lasts. `exposed`: it is an
    exposed port, reached by `prefix` or on its own host (b""), maybe by a `guest`.
    """

    __slots__ = (
        "authorization",
        "called",
        "entry",
        "exposed",
        "guest",
        "host_line",
        "port",
        "prefix",
        "subject",
        "target",
    )

    def __init__(
        self,
        port: Port,
        target: bytes,
        host_line: bytes,
        authorization: bytes,
        entry: Entry | None,
        subject: Subject,
        exposed: targets.Exposed | None = None,
        guest: Guest | None = None,
    ) -> None:
        self.port = port
        self.target = target
        self.host_line = host_line
        self.authorization = authorization
        self.called = entry is not None and entry.is_picod(port)
        self.entry = entry
        self.subject = subject
        self.exposed = exposed is not None
        self.prefix = b"" if exposed is None else exposed.prefix
        self.guest = guest

    def base(self, request: Request) -> bytes:
        """Where on the API's origin what the sandbox serves begins; b"" when it has an origin of its own."""
        if self.exposed or self.called:  # PicoD leads nobody anywhere
            return self.prefix
        return request.target.partition(b"?")[0].removesuffix(self.target.partition(b"?")[0])


def find(engine: Engine, request: Request) -> Destination | None:
    """The destination, or None when something has to be waited for.

    Raises:
        AgentCubeError: the answer is already known to be no.
    """
    route = engine.routes.of(request)
    if isinstance(route, _ASIDE):
        return None
    subject, guest = caller(engine, request, route)
    if isinstance(route, targets.Invocation):
        id = request.session_id or None  # an empty one is none, as in the Go system
        key: TemplateKey | None = route.key
    elif isinstance(route, _BY_ID):
        id, key = route.session_id, None
    elif isinstance(route, targets.Health):
        return None
    else:
        line = engine.tokens.find(("manager", subject), partial(engine.signer.for_manager, subject))
        return None if line is None else to_manager(engine, request, line, subject)
    entry = None if id is None else engine.sessions.find(id)
    if entry is None:
        return None
    check(engine, entry, subject, key, guest)
    sandbox = entry.sandbox
    if sandbox is None or not entry.ready:
        return None
    if isinstance(route, targets.Exposed):
        return to_exposed(entry, route, request, subject, guest)
    line = engine.tokens.fresh((entry.id, sandbox.id, subject.name))
    if line is None:
        line = engine.tokens.find(*_signing(engine, entry, subject))
    return None if line is None else to_sandbox(entry, route, request, line, subject)


def caller(engine: Engine, request: Request, route: targets.Route) -> tuple[Subject, Guest | None]:
    """Who asks, and whether by a share link. Raises Unauthenticated, Forbidden.

    Of a session that is not known yet any link of its port may hold: ask again when it is.
    """
    hosted = isinstance(route, targets.Exposed) and not route.prefix
    if hosted:
        assert isinstance(route, targets.Exposed)
        place = Place(route.session_id, route.port)
        guests = engine.links.find(request, place, secure=request.scheme == b"https")
        entry = engine.sessions.find(route.session_id) if guests else None
        for guest in guests:
            if entry is None or guest.holds(entry.session, engine.links.now):
                return guest.subject, guest
        if guests and request.authorization is None and not engine.settings.local_only:
            raise link_over()
    if engine.settings.local_only:
        refuse_pages(request, hosted=hosted)
    if route is targets.PUBLIC or isinstance(route, targets.Health):
        return ANONYMOUS, None
    return engine.auth.authenticate(request.authorization), None


def check(
    engine: Engine, entry: Entry, subject: Subject, key: TemplateKey | None, guest: Guest | None
) -> None:
    """Raise unless the caller may reach the session: as its owner, or while the link holds that brought him."""
    if guest is None:
        entry.check(subject, key)
    elif not guest.holds(entry.session, engine.links.now):
        raise link_over()


def link_over() -> Unauthenticated:
    """The one error for every link that leads nowhere."""
    return Unauthenticated("this share link is not good here, has expired, or was withdrawn")


def to_exposed(
    entry: Entry, route: targets.Exposed, request: Request, subject: Subject, guest: Guest | None
) -> Destination:
    """An exposed port of `entry`'s sandbox, which gets no credentials. NotFound when there is none.

    On a host of its own it gets that in Host, too: servers compare it with the Origin of WebSockets.
    """
    port = entry.reach(route.port)
    host_line = port.host_line if route.prefix else b"Host: %b\r\n" % request.host
    return Destination(port, route.path, host_line, b"", entry, subject, route, guest)


def idempotency_key(request: Request) -> str:
    """The request's `Idempotency-Key`; "" for none, and for one that only the sandbox can have an opinion on."""
    wanted = IDEMPOTENCY_HEADER.encode("ascii")
    lines = (line.partition(b":") for line in request.kept.split(b"\r\n"))
    keys = [value.strip(b" \t") for name, _, value in lines if name.lower() == wanted]
    if len(keys) != 1 or len(keys[0]) > KEY_CHARS_MAX or not all(32 <= c <= 126 for c in keys[0]):
        return ""
    return keys[0].decode("ascii")


def to_manager(engine: Engine, request: Request, line: bytes, subject: Subject) -> Destination:
    """The manager, which gets the client's Host because it makes URLs of it."""
    return Destination(
        engine.manager, request.target, b"Host: %b\r\n" % (request.host or b"localhost"), line, None, subject
    )


def to_tunnel(entry: Entry, route: targets.Tunnel, subject: Subject) -> Destination:
    """The port of `entry`'s sandbox that gets a tunnel's bytes, and nothing of ours. NotFound when there is none."""
    return Destination(entry.reach(route.port), b"", b"", b"", entry, subject)


def to_sandbox(
    entry: Entry,
    route: targets.Invocation | targets.SandboxCall,
    request: Request,
    line: bytes,
    subject: Subject,
) -> Destination:
    """The port of `entry`'s sandbox that serves `route`. NotFound when none does.

    It gets `line`, our own token, unless its template asks for what the caller brings.
    """
    port = entry.port(route.path) if isinstance(route, targets.Invocation) else entry.picod()
    if port.passes_credentials:
        own = request.authorization
        line = b"" if own is None else b"Authorization: %b\r\n" % own
    return Destination(port, route.path, port.host_line, line, entry, subject)


async def sandbox_token(engine: Engine, entry: Entry, subject: Subject) -> bytes:
    """The Authorization line for `entry`'s sandbox, signed now if need be."""
    return await engine.tokens.get(*_signing(engine, entry, subject))


async def manager_token(engine: Engine, subject: Subject) -> bytes:
    """The Authorization line for the manager, signed now if need be."""
    return await engine.tokens.get(("manager", subject), partial(engine.signer.for_manager, subject))


def _signing(engine: Engine, entry: Entry, subject: Subject) -> tuple[tuple[str, ...], Callable[[], str]]:
    """A token's key in the cache, and how to sign it."""
    assert entry.sandbox is not None
    sandbox = entry.sandbox.id
    return (entry.id, sandbox, subject.name), partial(engine.signer.for_sandbox, entry.id, sandbox, subject)
