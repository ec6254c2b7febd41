"""Routes of sessions: part B of the API, and the Go system's creation and deletion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from agentcube.errors import Invalid
from agentcube.manager.access import subject_of
from agentcube.manager.calls import repeatable, unless_gone
from agentcube.manager.creation import Wish, failure_of
from agentcube.manager.manager import Service
from agentcube.manager.present import compat_created, session_body
from agentcube.manager.problem_docs import answers
from agentcube.manager.service import Changes
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.session import Session
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.driver import Usage
from agentcube.ports.store import SessionQuery
from agentcube.wire.bodies import (
    CompatCreate,
    CompatCreated,
    CreateSession,
    KindName,
    Message,
    PatchSession,
    PhaseName,
    ResourcesBody,
    SessionBody,
    SessionPage,
)
from agentcube.wire.names import IDEMPOTENCY_HEADER, SESSION_HEADER

SessionPath = Annotated[str, Path(description="The session's id.", max_length=128)]
_METADATA_FILTER = "metadata."
_FILTERS = {"namespace", "kind", "phase", "limit", "cursor"}
_KEY_HEADER = {
    "parameters": [
        {
            "name": IDEMPOTENCY_HEADER,
            "in": "header",
            "required": False,
            "schema": {"type": "string", "maxLength": 255},
            "description": "The same key and body answer with the same session for 24 h.",
        }
    ]
}


def compat_routes(service: Service, public_address: str) -> APIRouter:
    """The Go system's four routes."""
    routes = APIRouter(tags=["Sessions (Go system)"])

    async def create(kind: Kind, body: CompatCreate, request: Request, response: Response) -> CompatCreated:
        wish = Wish(
            template=TemplateKey(kind, body.namespace, body.name),
            ttl=body.ttl,
            bounded=True,
            metadata=body.metadata,
        )
        session = await _create(service, wish, request, response, body)
        return compat_created(session, public_address)

    async def delete(id: str, request: Request) -> Message:
        await service.sessions.delete(SessionId(id), subject_of(request))
        return Message(message=f"session {id} deleted")

    @routes.post(
        "/v1/code-interpreter",
        summary="Create a session of a CodeInterpreter",
        responses=answers(400, 401, 404, 409, 429, 503, 504),
        openapi_extra=_KEY_HEADER,
    )
    async def create_interpreter(body: CompatCreate, request: Request, response: Response) -> CompatCreated:
        """Answers once the session is Ready."""
        return await create(Kind.CODE_INTERPRETER, body, request, response)

    @routes.post(
        "/v1/agent-runtime",
        summary="Create a session of an AgentRuntime",
        responses=answers(400, 401, 404, 409, 429, 502, 503, 504),
        openapi_extra=_KEY_HEADER,
    )
    async def create_agent(body: CompatCreate, request: Request, response: Response) -> CompatCreated:
        """Answers once the session is Ready: its command runs and every declared port accepts connections."""
        return await create(Kind.AGENT_RUNTIME, body, request, response)

    @routes.delete(
        "/v1/code-interpreter/sessions/{id}",
        summary="Delete a session of a CodeInterpreter",
        responses=answers(401, 404),
    )
    async def delete_interpreter_session(id: SessionPath, request: Request) -> Message:
        """Answers when the sandbox is gone, or certain to go. Clients count 404 as success."""
        return await delete(id, request)

    @routes.delete(
        "/v1/agent-runtime/sessions/{id}",
        summary="Delete a session of an AgentRuntime",
        responses=answers(401, 404),
    )
    async def delete_agent_session(id: SessionPath, request: Request) -> Message:
        """Answers when the sandbox is gone, or certain to go. Clients count 404 as success."""
        return await delete(id, request)

    return routes


def session_routes(service: Service) -> APIRouter:
    """`/v1/sessions`."""
    routes = APIRouter(prefix="/v1/sessions", tags=["Sessions"])

    @routes.post(
        "",
        status_code=201,
        summary="Create a session",
        responses=answers(400, 401, 404, 409, 429, 502, 503, 504),
        openapi_extra=_KEY_HEADER,
    )
    async def create_session(body: CreateSession, request: Request, response: Response) -> SessionBody:
        """Answers once the session is Ready. A caller that leaves before that leaves no session behind."""
        session = await _create(service, _wish(body), request, response, body)
        response.headers["Location"] = f"/v1/sessions/{session.id}"
        return shown(service, session)

    @routes.get("", summary="List sessions", responses=answers(400, 401))
    async def list_sessions(
        request: Request,
        namespace: Annotated[str | None, Query()] = None,
        kind: Annotated[KindName | None, Query()] = None,
        phase: Annotated[PhaseName | None, Query()] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    ) -> SessionPage:
        """The caller's sessions, oldest first. `metadata.<key>=<value>` filters by metadata, repeatably."""
        page = await service.sessions.list(
            SessionQuery(
                kind=None if kind is None else Kind(kind),
                namespace=namespace,
                phase=None if phase is None else Phase(phase),
                metadata=_metadata_filter(request),
                limit=limit,
                cursor=cursor,
            ),
            subject_of(request),
        )
        return SessionPage(items=[shown(service, s) for s in page.sessions], next_cursor=page.cursor)

    @routes.get("/{id}", summary="Get a session", responses=answers(401, 404))
    async def get_session(id: SessionPath, request: Request) -> SessionBody:
        """The session, with what its sandbox uses now."""
        session = await service.sessions.get(SessionId(id), subject_of(request))
        return shown(service, session, await service.sessions.usage(session))

    @routes.patch("/{id}", summary="Change a session", responses=answers(400, 401, 404, 409))
    async def patch_session(id: SessionPath, body: PatchSession, request: Request) -> SessionBody:
        """Changes lifetime, timeouts and metadata. `ttl` counts from creation, not from now."""
        never = "suspend_after" in body.model_fields_set and body.suspend_after is None
        changes = Changes(
            ttl=body.ttl,
            idle_timeout=body.idle_timeout,
            suspend_after=body.suspend_after,
            never_suspend=never,
            metadata=body.metadata or {},
        )
        return shown(service, await service.sessions.change(SessionId(id), changes, subject_of(request)))

    @routes.delete("/{id}", status_code=204, summary="Delete a session", responses=answers(401, 404))
    async def delete_session(id: SessionPath, request: Request) -> None:
        """Answers when the sandbox is gone, or certain to go."""
        await service.sessions.delete(SessionId(id), subject_of(request))

    return routes


def shown(service: Service, session: Session, usage: Usage | None = None) -> SessionBody:
    """The session as its owner sees it."""
    return session_body(session, usage, stays_awake=service.sessions.stays_awake(session))


async def _create(
    service: Service,
    wish: Wish,
    request: Request,
    response: Response,
    body: CompatCreate | CreateSession,
) -> Session:
    repeat = repeatable(request, body)
    session = await unless_gone(request, service.sessions.create(wish, subject_of(request), repeat))
    if session.phase is Phase.FAILED or session.sandbox is None:
        raise failure_of(session)
    response.headers[SESSION_HEADER] = session.id
    return session


def _wish(body: CreateSession) -> Wish:
    return Wish(
        template=TemplateKey(Kind(body.kind), body.namespace, body.name),
        ttl=body.ttl,
        idle_timeout=body.idle_timeout,
        suspend_after=body.suspend_after,
        env=body.env,
        metadata=body.metadata,
        resources=_resources(body.resources) if body.resources else {},
    )


def _resources(body: ResourcesBody) -> Mapping[str, int]:
    given: dict[str, Any] = {
        "cpu_millis": body.cpu,
        "memory_bytes": body.memory,
        "pids_max": body.pids,
        "workspace_bytes": body.workspace,
        "tmp_bytes": body.tmp,
    }
    return {name: value for name, value in given.items() if value is not None}


def _metadata_filter(request: Request) -> dict[str, str]:
    """`metadata.<key>` parameters; a parameter that is nothing we know is an error, not ignored."""
    wanted = {}
    for name, value in request.query_params.multi_items():
        if name.startswith(_METADATA_FILTER) and len(name) > len(_METADATA_FILTER):
            wanted[name.removeprefix(_METADATA_FILTER)] = value
        elif name not in _FILTERS:
            raise Invalid(
                f"there is no filter {name[:64]!r}; there are {', '.join(sorted(_FILTERS))}, metadata.<key>"
            )
    return wanted
