"""Where a request goes, when that can be told at once. What needs waiting is `slow`'s."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from agentcube.model.template import TemplateKey
from agentcube.ports.tokens import ANONYMOUS, Subject
from agentcube.router import targets
from agentcube.router.sessions import Entry, Port

if TYPE_CHECKING:
    from agentcube.router.engine import Engine
    from agentcube.router.heads import Request


class Destination:
    """A port, and what the request says there. `entry` is None for the manager."""

    __slots__ = ("authorization", "entry", "host_line", "port", "subject", "target")

    def __init__(
        self,
        port: Port,
        target: bytes,
        host_line: bytes,
        authorization: bytes,
        entry: Entry | None,
        subject: Subject,
    ) -> None:
        self.port = port
        self.target = target
        self.host_line = host_line
        self.authorization = authorization
        self.entry = entry
        self.subject = subject


def find(engine: Engine, request: Request) -> Destination | None:
    """The destination, or None when something has to be waited for.

    Raises:
        AgentCubeError: the answer is already known to be no.
    """
    route = engine.routes.route(request.target)
    if isinstance(route, targets.Health):
        return None
    subject = ANONYMOUS if route is targets.PUBLIC else engine.auth.authenticate(request.authorization)
    if isinstance(route, targets.Invocation):
        id = request.session_id or None  # an empty one is none, as in the Go system
        key: TemplateKey | None = route.key
    elif isinstance(route, targets.SandboxCall):
        id, key = route.session_id, None
    else:
        line = engine.tokens.find(("manager", subject), partial(engine.signer.for_manager, subject))
        return None if line is None else to_manager(engine, request, line, subject)
    entry = None if id is None else engine.sessions.find(id)
    if entry is None:
        return None
    entry.check(subject, key)
    sandbox = entry.sandbox
    if sandbox is None or not entry.ready:
        return None
    line = engine.tokens.fresh((entry.id, sandbox.id, subject.name))
    if line is None:
        line = engine.tokens.find(*_signing(engine, entry, subject))
    return None if line is None else to_sandbox(entry, route, line, subject)


def to_manager(engine: Engine, request: Request, line: bytes, subject: Subject) -> Destination:
    """The manager, which gets the client's Host because it makes URLs of it."""
    return Destination(
        engine.manager, request.target, b"Host: %b\r\n" % (request.host or b"localhost"), line, None, subject
    )


def to_sandbox(
    entry: Entry, route: targets.Invocation | targets.SandboxCall, line: bytes, subject: Subject
) -> Destination:
    """The port of `entry`'s sandbox that serves `route`. NotFound when none does."""
    port = entry.port(route.path) if isinstance(route, targets.Invocation) else entry.picod()
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
