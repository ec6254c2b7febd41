"""The requests that cannot go at once: those that make, wake or find a session, or need a connection.

Everything here is an ordinary coroutine; a client that went away meanwhile is no error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

import structlog

from agentcube import http1
from agentcube.errors import (
    AgentCubeError,
    MethodNotAllowed,
    SessionFailed,
    SessionNotFound,
    StartTimedOut,
    Unavailable,
    Unreachable,
)
from agentcube.model.lifecycle import Phase
from agentcube.model.template import TemplateKey
from agentcube.router import exposed, problems, resolve, targets
from agentcube.router.sessions import Entry, unknown_session

if TYPE_CHECKING:
    from agentcube.ports.tokens import Subject
    from agentcube.router.answering import Answering
    from agentcube.router.engine import Engine
    from agentcube.router.exposed import Guest
    from agentcube.router.heads import Request
    from agentcube.router.resolve import Destination
    from agentcube.router.upstream import Upstream

log = structlog.get_logger(__name__)

T = TypeVar("T")


async def serve(engine: Engine, client: Answering, request: Request, destination: Destination | None) -> None:
    """Bring a held request to its destination, found first if it is None, or refuse it.

    `engine.waiting` was counted up for it.
    """
    try:
        route = engine.routes.of(request)
        if isinstance(route, targets.Exchange):
            await _exchange(engine, client, request, route)
            return
        if isinstance(route, targets.Health):
            await _health(engine, client, request, route)
            return
        if destination is None:
            destination = await _find(engine, client, request, route)
        destination, upstream = await _connect(engine, request, route, destination)
        client.waited()
        if isinstance(route, targets.Tunnel):
            client.open_tunnel(destination, upstream)
        else:
            client.forward(destination, upstream)
    except AgentCubeError as error:
        client.refuse(error)
    except Exception:
        log.exception("request failed inside the router", request_id=request.id.decode("ascii"))
        client.refuse(AgentCubeError("the Router failed; the log has this request's id"))
    finally:
        engine.waiting -= 1


async def suspect(engine: Engine, entry: Entry) -> None:
    """Have the session's sandbox looked at, so that the next request finds the truth."""
    try:
        await _suspect(engine, entry)
    except AgentCubeError as error:
        log.info("suspicion not settled", session=entry.id, error=error.code)


async def _find(engine: Engine, client: Answering, request: Request, route: targets.Route) -> Destination:
    subject, guest = resolve.caller(engine, request, route)
    client.charge(subject, waits=True)
    match route:
        case targets.Invocation():
            id = request.session_id or None
            key: TemplateKey | None = route.key
        case targets.SandboxCall() | targets.Exposed():
            id, key = route.session_id, None
        case targets.Tunnel():
            _check_tunnel(request)
            id, key = route.session_id, None
        case _:
            line = await resolve.manager_token(engine, subject)
            return resolve.to_manager(engine, request, line, subject)
    if id is not None:
        entry = await engine.sessions.get(id)
        if guest is not None:  # now that it is known which links hold
            subject, guest = resolve.caller(engine, request, route)
        resolve.check(engine, entry, subject, key, guest)
    else:
        assert key is not None
        made = engine.control.create_for(key, subject, key=resolve.idempotency_key(request))
        limit = StartTimedOut("the session was not ready in time")
        entry = engine.sessions.keep(await _within(engine.settings.create_timeout_s, made, limit))
    client.attach(entry, guest=guest is not None)
    await _settle(engine, entry)
    return await _inside(engine, request, entry, route, subject, guest)


async def _inside(
    engine: Engine,
    request: Request,
    entry: Entry,
    route: targets.Inside,
    subject: Subject,
    guest: Guest | None,
) -> Destination:
    """Where in a ready session's sandbox `route` leads."""
    if isinstance(route, targets.Tunnel):
        return resolve.to_tunnel(entry, route, subject)
    if isinstance(route, targets.Exposed):
        return resolve.to_exposed(entry, route, request, subject, guest)
    line = await resolve.sandbox_token(engine, entry, subject)
    return resolve.to_sandbox(entry, route, request, line, subject)


def _check_tunnel(request: Request) -> None:
    if request.method != b"GET" or request.body:
        raise MethodNotAllowed("a tunnel is asked for with GET and no body")
    if request.upgrade is None or http1.options(request.upgrade) != {b"tcp"}:
        raise problems.UpgradeRequired("send 'Connection: Upgrade' and 'Upgrade: tcp'")


async def _settle(engine: Engine, entry: Entry) -> None:
    """Return when the session is Ready, woken if it sleeps."""
    if not entry.ready and entry.session.phase is not Phase.FAILED:
        await engine.wakes.wake(entry)
    if entry.ready:
        return
    session = entry.session
    if session.phase is Phase.FAILED:
        text = session.message or session.reason or "the session failed"
        raise SessionFailed(text, reason=session.reason)
    if session.phase in (Phase.DELETING, Phase.DELETED):
        raise unknown_session()
    raise Unavailable("the session is not ready", phase=session.phase.value)


async def _within(timeout_s: float, work: Awaitable[T], limit: AgentCubeError) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise limit from None


async def _connect(
    engine: Engine, request: Request, route: targets.Route, destination: Destination
) -> tuple[Destination, Upstream]:
    """A connection to the destination; the sandbox's own is tried again once the manager had a look."""
    try:
        return destination, await destination.port.pool.dial()
    except (Unreachable, problems.ConnectTimedOut):
        entry = destination.entry
        if entry is None:
            raise Unavailable("the Workload Manager cannot be reached") from None
    await _suspect(engine, entry)
    await _settle(engine, entry)
    assert isinstance(route, targets.Inside)
    again = await _inside(engine, request, entry, route, destination.subject, destination.guest)
    return again, await again.port.pool.dial()


async def _suspect(engine: Engine, entry: Entry) -> None:
    try:
        looked = engine.suspicions.join(entry.id, lambda: engine.control.suspect(entry.id))
        limit = Unavailable("the sandbox does not answer and could not be looked at in time")
        found = await _within(engine.settings.wake_timeout_s, looked, limit)
        engine.sessions.renew(entry, found)
    except SessionNotFound:
        raise unknown_session() from None


async def _exchange(engine: Engine, client: Answering, request: Request, route: targets.Exchange) -> None:
    """Give the browser the link's token as a cookie, and the same address without it."""
    if request.method not in (b"GET", b"HEAD"):
        raise MethodNotAllowed("a share link is followed with GET")
    guest = engine.links.guest(route.token, route.place)
    if guest is None:
        raise resolve.link_over()
    client.charge(guest.subject, waits=True)
    entry = await engine.sessions.get(route.place.session_id)
    if not guest.holds(entry.session, engine.links.now):
        raise resolve.link_over()
    seconds = int(guest.link.expires - engine.links.now)
    given = exposed.cookie(route.token, seconds, secure=request.scheme == b"https")
    headers = [
        (b"location", exposed.without_token(request.target)),
        (b"set-cookie", given),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
    ]
    client.respond(303, headers, b"")


async def _health(engine: Engine, client: Answering, request: Request, route: targets.Health) -> None:
    if request.method not in (b"GET", b"HEAD"):
        raise MethodNotAllowed("health is asked with GET")
    if route.probe != b"/live":
        await _ready(engine)
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    client.respond(200, headers, json.dumps({"status": "healthy"}).encode())


async def _ready(engine: Engine) -> None:
    if engine.draining:
        raise Unavailable("this Router is draining")
    try:
        (await engine.manager.pool.dial()).close()
    except AgentCubeError:
        raise Unavailable("the Workload Manager cannot be reached") from None
    for check in engine.checks:
        await check()
