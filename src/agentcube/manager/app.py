"""The Workload Manager's HTTP application: routes, the access check, problems, OpenAPI. No loops here."""

from __future__ import annotations

from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from agentcube import __version__
from agentcube.errors import AgentCubeError
from agentcube.manager import docs_page
from agentcube.manager.access import ACCESS, Access, authorise
from agentcube.manager.edge import Edge, on_error, on_http, on_invalid
from agentcube.manager.manager import Service
from agentcube.manager.problem_docs import answers
from agentcube.manager.routes_phases import phase_routes
from agentcube.manager.routes_ports import port_routes
from agentcube.manager.routes_sessions import compat_routes, session_routes
from agentcube.manager.routes_templates import pool_routes, template_routes
from agentcube.manager.settings import ManagerSettings
from agentcube.ports.tokens import Verifier
from agentcube.wire.bodies import Health
from agentcube.wire.inside import openapi as inside
from agentcube.wire.problems import Problem

_DESCRIPTION = """Sandboxed sessions for AI agents. Errors are `application/problem+json` (RFC 9457): `code` is
the contract, `retryable` says whether the same request may succeed later (then there is a Retry-After)."""


def build_app(service: Service, verifier: Verifier, settings: ManagerSettings) -> FastAPI:
    """The application over `service`; callers prove themselves with tokens that `verifier` knows."""

    async def checked(request: Request) -> None:
        authorise(request, verifier)

    app = FastAPI(
        title="AgentCube",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        dependencies=[Depends(checked)],
        exception_handlers={
            AgentCubeError: on_error,
            RequestValidationError: on_invalid,
            HTTPException: on_http,
        },
    )
    app.add_middleware(Edge, body_bytes_max=settings.body_bytes_max)
    _health_routes(app, service)
    app.include_router(compat_routes(service, settings.public_address))
    app.include_router(session_routes(service))
    app.include_router(phase_routes(service))
    app.include_router(port_routes(service, settings.ports_domain))
    app.include_router(template_routes(service))
    app.include_router(pool_routes(service))
    _document_routes(app)
    return app


def _health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["Health"], summary="Whether everything works", responses=answers(503))
    async def health() -> Health:
        """503 when a dependency is down, or while starting and stopping."""
        await service.check()
        return Health(status="healthy")

    @app.get("/health/live", tags=["Health"], summary="Whether the process turns")
    async def live() -> Health:
        """Always 200 when it answers at all."""
        return Health(status="healthy")

    @app.get("/health/ready", tags=["Health"], summary="Whether sessions can be made", responses=answers(503))
    async def ready() -> Health:
        """Same as /health."""
        await service.check()
        return Health(status="healthy")


def _document_routes(app: FastAPI) -> None:
    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> dict[str, Any]:
        return document(app)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page.page(document(app)), headers=docs_page.HEADERS)


def document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the application; made once."""
    if app.openapi_schema is None:
        made = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        schemas = made.setdefault("components", {}).setdefault("schemas", {})
        problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(problem.pop("$defs", {}))
        schemas["Problem"] = problem
        schemas.update(inside.schemas())
        made["paths"].update(inside.paths())  # the Router takes these to the session's PicoD
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        made["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        for path, operations in made["paths"].items():
            for method, operation in operations.items():
                operation["responses"].pop("422", None)
                if ACCESS.get((method.upper(), path)) is not Access.PUBLIC:
                    operation["security"] = [{"bearer": []}]
        app.openapi_schema = made
    return app.openapi_schema
