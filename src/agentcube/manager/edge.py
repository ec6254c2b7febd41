"""The outermost layer of the API: request ids, body bounds, and every error as a problem document."""

from __future__ import annotations

import json
import re
import secrets
from typing import Any

import structlog
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentcube.errors import AgentCubeError, BodyTooLarge, Invalid, MethodNotAllowed, NotFound
from agentcube.runtime.problems import problem, problem_headers
from agentcube.wire.names import PROBLEM_TYPE, REQUEST_ID_HEADER
from agentcube.wire.problems import FieldProblem, InvalidFields, fields_of

log = structlog.get_logger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class ProblemResponse(JSONResponse):
    """A problem document."""

    media_type = PROBLEM_TYPE

    def render(self, content: Any) -> bytes:
        """As ASCII: it may repeat what a client sent, half a surrogate pair too."""
        return json.dumps(content).encode("ascii")


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, body_bytes_max: int) -> None:
        self._app = app
        self._body_bytes_max = body_bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                receiving = self._bounded(scope, receive)
                await self._app(scope, receiving, sending)
            except Exception as exc:  # a request's top: one bug must not close the others' connections
                error = exc if isinstance(exc, AgentCubeError) else AgentCubeError()
                if not isinstance(exc, AgentCubeError):
                    log.exception("request failed", path=scope["path"])
                if started:
                    raise
                await problem_response(Request(scope), error)(scope, receive, sending)

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """`receive` that ends in BodyTooLarge, before the body when its length is announced."""
        limit = self._body_bytes_max
        too_large = BodyTooLarge(f"the body is over {limit} bytes", limit_bytes=limit)
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdecimal() and int(announced) > limit:
            raise too_large
        taken = 0

        async def receiving() -> Message:
            nonlocal taken
            message = await receive()
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                if taken > limit:
                    raise too_large
            return message

        return receiving


def problem_response(request: Request, error: AgentCubeError) -> ProblemResponse:
    """The answer that `error` is."""
    document = problem(error, instance=request.url.path, request_id=request.scope["state"]["request_id"])
    return ProblemResponse(document, status_code=error.status, headers=dict(problem_headers(error)))


async def on_error(request: Request, exc: Exception) -> ProblemResponse:
    """Handler of AgentCubeError."""
    assert isinstance(exc, AgentCubeError)
    return problem_response(request, exc)


async def on_invalid(request: Request, exc: Exception) -> ProblemResponse:
    """Handler of what pydantic found wrong in a request."""
    assert isinstance(exc, RequestValidationError)
    return problem_response(request, InvalidFields([_field(e) for e in exc.errors()]))


async def on_http(request: Request, exc: Exception) -> ProblemResponse:
    """Handler of what the framework itself refuses."""
    assert isinstance(exc, HTTPException)
    path = request.url.path
    if exc.status_code == 405:
        error: AgentCubeError = MethodNotAllowed(f"{path} has no {request.method}")
    elif exc.status_code == 404:
        error = NotFound(f"there is nothing at {path}")
    elif isinstance(exc.__cause__, AgentCubeError):  # raised while the framework read the body
        error = exc.__cause__
    elif isinstance(exc.__cause__, ValueError):
        error = Invalid("the body is not JSON: it is not UTF-8, or has a value that cannot be")
    else:
        error = Invalid(str(exc.detail))
    response = problem_response(request, error)
    response.headers.update(exc.headers or {})
    return response


def _field(error: dict[str, Any]) -> FieldProblem:
    """A pydantic error of a request; bodies get pointers, parameters their place and name."""
    if error["type"] == "json_invalid":
        return FieldProblem("", f"is not JSON: {error.get('ctx', {}).get('error', 'malformed')}")
    place, *rest = error["loc"]
    if place == "body" and not rest:
        missing = error["type"] == "missing"
        return FieldProblem(
            "", "is missing" if missing else "must be a JSON object (Content-Type: application/json)"
        )
    [field] = fields_of([{**error, "loc": rest}])
    return field if place == "body" else FieldProblem(f"{place}:{field.pointer.lstrip('/')}", field.message)
