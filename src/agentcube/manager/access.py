"""Who may call which route: one table, and the check that every request passes.

A route that is not in the table is refused to everybody. Ownership of the thing that is asked for
is checked below, by the use cases, on every path to it.
"""

from __future__ import annotations

from enum import Enum

from starlette.requests import Request

from agentcube.errors import Forbidden, Unauthenticated
from agentcube.ports.tokens import Subject, Verifier


class Access(Enum):
    """A route's policy."""

    PUBLIC = "public"  # tells nothing about anybody
    CALLER = "caller"  # whoever the Router vouches for
    OWNER = "owner"  # the same; and the thing must be the caller's, or the caller an admin


_TEMPLATES = "/v1/namespaces/{namespace}/{plural}"
ACCESS: dict[tuple[str, str], Access] = {
    ("GET", "/health"): Access.PUBLIC,
    ("GET", "/health/live"): Access.PUBLIC,
    ("GET", "/health/ready"): Access.PUBLIC,
    ("GET", "/openapi.json"): Access.PUBLIC,
    ("GET", "/docs"): Access.PUBLIC,
    ("POST", "/v1/code-interpreter"): Access.CALLER,
    ("POST", "/v1/agent-runtime"): Access.CALLER,
    ("DELETE", "/v1/code-interpreter/sessions/{id}"): Access.OWNER,
    ("DELETE", "/v1/agent-runtime/sessions/{id}"): Access.OWNER,
    ("POST", "/v1/sessions"): Access.CALLER,
    ("GET", "/v1/sessions"): Access.CALLER,
    ("GET", "/v1/sessions/{id}"): Access.OWNER,
    ("PATCH", "/v1/sessions/{id}"): Access.OWNER,
    ("DELETE", "/v1/sessions/{id}"): Access.OWNER,
    ("POST", "/v1/sessions/{id}/suspend"): Access.OWNER,
    ("POST", "/v1/sessions/{id}/resume"): Access.OWNER,
    ("GET", "/v1/sessions/{id}/events"): Access.OWNER,
    ("GET", "/v1/sessions/{id}/ports"): Access.OWNER,
    ("GET", "/v1/sessions/{id}/ports/{port}"): Access.OWNER,
    ("PUT", "/v1/sessions/{id}/ports/{port}"): Access.OWNER,
    ("DELETE", "/v1/sessions/{id}/ports/{port}"): Access.OWNER,
    ("POST", "/v1/sessions/{id}/shares"): Access.OWNER,
    ("GET", _TEMPLATES): Access.CALLER,
    ("PUT", _TEMPLATES + "/{name}"): Access.CALLER,
    ("GET", _TEMPLATES + "/{name}"): Access.CALLER,
    ("DELETE", _TEMPLATES + "/{name}"): Access.CALLER,
    ("GET", "/v1/pools"): Access.CALLER,
}


def authorise(request: Request, verifier: Verifier) -> None:
    """Let the request in and remember whose it is. Raises Unauthenticated, Forbidden."""
    path = getattr(request.scope.get("route"), "path", "")
    policy = ACCESS.get((request.method, path))
    if policy is None:
        raise Forbidden("this route has no access policy")
    if policy is Access.PUBLIC:
        return
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("this call needs the Router's bearer token; send requests through the Router")
    request.state.subject = verifier.manager_caller(token.strip())


def subject_of(request: Request) -> Subject:
    """Whose request it is; only for routes that are not public."""
    subject: Subject = request.state.subject
    return subject
