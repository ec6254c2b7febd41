"""Routes of a session's ports. What is behind a port the Router reaches; here is who may."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Path, Request

from agentcube.manager.access import subject_of
from agentcube.manager.exposures import ports_of
from agentcube.manager.manager import Service
from agentcube.manager.problem_docs import answers
from agentcube.manager.routes_sessions import SessionPath
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.wire.bodies import CreateShare, PortBody, PortPage, ShareBody
from agentcube.wire.names import SHARE_PARAMETER

PortPath = Annotated[int, Path(ge=1, le=65535, description="A TCP port inside the sandbox.")]


def port_routes(service: Service, ports_domain: str) -> APIRouter:
    """`/v1/sessions/{id}/ports` and `/v1/sessions/{id}/shares`."""
    routes = APIRouter(prefix="/v1/sessions/{id}", tags=["Ports"])

    def shown(session: Session, port: int, request: Request) -> PortBody:
        return PortBody(
            port=port,
            name=ports_of(session)[port],
            declared=any(route.port == port for route in session.routes),
            path=f"/v1/sessions/{session.id}/ports/{port}/",
            url=_url(request, session, port, ports_domain),
        )

    @routes.get("/ports", summary="List a session's ports", responses=answers(401, 404))
    async def list_ports(id: SessionPath, request: Request) -> PortPage:
        """Those that its template declares, and those that were exposed since."""
        session = await service.exposures.find(SessionId(id), subject_of(request))
        return PortPage(items=[shown(session, port, request) for port in ports_of(session)])

    @routes.get("/ports/{port}", summary="Get a port", responses=answers(400, 401, 404))
    async def get_port(id: SessionPath, port: PortPath, request: Request) -> PortBody:
        """Where it is reached. With a slash behind the number the path is the port's own."""
        session = await service.exposures.find(SessionId(id), subject_of(request), port)
        return shown(session, port, request)

    @routes.put("/ports/{port}", summary="Expose a port", responses=answers(400, 401, 404, 409, 429))
    async def expose_port(id: SessionPath, port: PortPath, request: Request) -> PortBody:
        """Lets the session's owner, and whoever has a share link, reach what listens there. Repeatable."""
        session = await service.exposures.expose(SessionId(id), port, subject_of(request))
        return shown(session, port, request)

    @routes.delete(
        "/ports/{port}", status_code=204, summary="Withdraw a port", responses=answers(400, 401, 404)
    )
    async def withdraw_port(id: SessionPath, port: PortPath, request: Request) -> None:
        """Ends its share links, and what was opened with them. A port that the template declares is still the
        owner's to reach.
        """
        await service.exposures.withdraw(SessionId(id), port, subject_of(request))

    @routes.post(
        "/shares",
        status_code=201,
        summary="Share a port by a link",
        responses=answers(400, 401, 404, 409, 429),
    )
    async def share_port(id: SessionPath, body: CreateShare, request: Request) -> ShareBody:
        """A link that lets whoever has it use the port in a browser until it expires, the port is withdrawn or
        the session ends. Exposes the port if it is not.
        """
        session, link = await service.exposures.share(SessionId(id), body.port, body.ttl, subject_of(request))
        url = _url(request, session, body.port, ports_domain)
        return ShareBody(
            port=body.port,
            url=None if url is None else f"{url}?{SHARE_PARAMETER}={link.token}",
            token=link.token,
            expires_at=link.expires_at,
        )

    return routes


def _url(request: Request, session: Session, port: int, domain: str) -> str | None:
    """The port's own origin, reached by the scheme and TCP port that this request came by."""
    if not domain:
        return None
    scheme = "https" if request.headers.get("x-forwarded-proto") == "https" else "http"
    host = request.headers.get("x-forwarded-host") or request.headers.get("host", "")
    try:
        at = urlsplit(f"//{host}").port
    except ValueError:
        at = None
    return f"{scheme}://{port}-{session.id}.{domain}{f':{at}' if at else ''}/"
