"""Routes of a session's phases: putting it to sleep, waking it, and watching what becomes of it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from agentcube.manager.access import subject_of
from agentcube.manager.event_stream import EventStream
from agentcube.manager.manager import Service
from agentcube.manager.problem_docs import answers
from agentcube.manager.routes_sessions import SessionPath, shown
from agentcube.model.ids import SessionId
from agentcube.wire.bodies import SessionBody


def phase_routes(service: Service) -> APIRouter:
    """`/v1/sessions/{id}/suspend`, `/resume` and `/events`."""
    routes = APIRouter(prefix="/v1/sessions/{id}", tags=["Sessions"])

    @routes.post("/suspend", summary="Put a session to sleep", responses=answers(401, 404, 409, 502, 503))
    async def suspend_session(id: SessionPath, request: Request) -> SessionBody:
        """Answers once it is Paused: its processes stand still and keep their state; a request wakes it.
        409 `session_busy` while requests of it are under way, `suspend_unsupported` where nothing can suspend.
        Repeatable.
        """
        return shown(service, await service.sessions.suspend(SessionId(id), subject_of(request)))

    @routes.post("/resume", summary="Wake a session", responses=answers(401, 404, 502, 503, 504))
    async def resume_session(id: SessionPath, request: Request) -> SessionBody:
        """Answers once it is Ready; that is what a request does by itself. 503 `wake_failed` when it could
        not be woken: it is kept asleep. Repeatable.
        """
        return shown(service, await service.sessions.resume(SessionId(id), subject_of(request)))

    @routes.get(
        "/events",
        summary="Watch a session's phases",
        response_class=EventStream,
        responses=answers(400, 401, 404, 429, 503),
    )
    async def session_events(
        id: SessionPath,
        request: Request,
        after: Annotated[
            int | None, Query(ge=0, description="Begin behind this change: 0 for all on record.")
        ] = None,
        last_event_id: Annotated[
            int | None, Header(ge=0, description="The same, as clients of server-sent events ask for it.")
        ] = None,
    ) -> EventStream:
        """Server-sent events (or `Accept: application/x-ndjson`, an object a line): each phase that the session
        comes to, with reason and time, until it is Deleted. Begins with the present phase. A record keeps its
        16 latest changes; `gap` tells of older ones that were asked for. Watching is no activity. The stream
        also ends when the server stops: ask again.
        """
        caller = subject_of(request)
        session = await service.sessions.get(SessionId(id), caller)
        began = last_event_id if last_event_id is not None else after
        told = service.events.follow(session, caller.name, after=began)
        return await EventStream.begin(told, accept=request.headers.get("accept", ""))

    return routes
