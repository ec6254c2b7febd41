"""The requests that cannot go at once: those that make, wake or find a session, or need a connection.

Everything here is an ordinary coroutine; a client that went away meanwhile is no error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

import structlog

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
from agentcube.ports.tokens import ANONYMOUS
from agentcube.router import problems, resolve, targets
from agentcube.router.sessions import Entry, unknown_session

if TYPE_CHECKING:
    from agentcube.model.session import Session
    from agentcube.router.answering import Answering
    from agentcube.router.engine import Engine
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
        route = engine.routes.route(request.target)
        if isinstance(route, targets.Health):
            await _health(engine, client, request, route)
            return
        if destination is None:
            destination = await _find(engine, client, request, route)
        destination, upstream = await _connect(engine, route, destination)
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
    subject = ANONYMOUS if route is targets.PUBLIC else engine.auth.authenticate(request.authorization)
    match route:
        case targets.Invocation():
            id = request.session_id or None
            key: TemplateKey | None = route.key
        case targets.SandboxCall():
            id, key = route.session_id, None
        case _:
            line = await resolve.manager_token(engine, subject)
            return resolve.to_manager(engine, request, line, subject)
    if id is not None:
        entry = await engine.sessions.get(id)
        entry.check(subject, key)
    else:
        assert key is not None
        made = engine.control.create_for(key, subject)
        limit = StartTimedOut("the session was not ready in time")
        entry = engine.sessions.keep(await _within(engine.settings.create_timeout_s, made, limit))
    client.attach(entry)
    await _settle(engine, entry)
    line = await resolve.sandbox_token(engine, entry, subject)
    return resolve.to_sandbox(entry, route, line, subject)


async def _settle(engine: Engine, entry: Entry) -> None:
    """Return when the session is Ready, woken if it sleeps."""
    if not entry.ready and entry.session.phase is not Phase.FAILED:
        woken = engine.control.wake(entry.id)
        limit = StartTimedOut("the session did not wake in time")
        _keep(engine, entry, await _within(engine.settings.wake_timeout_s, woken, limit))
    if entry.ready:
        return
    session = entry.session
    if session.phase is Phase.FAILED:
        text = session.message or session.reason or "the session failed"
        raise SessionFailed(text, reason=session.reason)
    if session.phase in (Phase.DELETING, Phase.DELETED):
        raise unknown_session()
    raise Unavailable("the session is not ready", phase=session.phase.value)


def _keep(engine: Engine, entry: Entry, session: Session) -> None:
    entry.renew(session, engine.pools)
    engine.sessions.keep(session)


async def _within(timeout_s: float, work: Awaitable[T], limit: AgentCubeError) -> T:
    try:
        async with asyncio.timeout(timeout_s):
            return await work
    except TimeoutError:
        raise limit from None


async def _connect(
    engine: Engine, route: targets.Route, destination: Destination
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
    assert isinstance(route, targets.Invocation | targets.SandboxCall)
    subject = destination.subject
    line = await resolve.sandbox_token(engine, entry, subject)
    again = resolve.to_sandbox(entry, route, line, subject)
    return again, await again.port.pool.dial()


async def _suspect(engine: Engine, entry: Entry) -> None:
    try:
        looked = engine.suspicions.join(entry.id, lambda: engine.control.suspect(entry.id))
        limit = Unavailable("the sandbox does not answer and could not be looked at in time")
        _keep(engine, entry, await _within(engine.settings.wake_timeout_s, looked, limit))
    except SessionNotFound:
        raise unknown_session() from None


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
