"""What a request target means. Pure; the raw path and query are passed on as they came."""

from __future__ import annotations

import re
from typing import NamedTuple

from agentcube.errors import NotFound
from agentcube.model.template import Kind, TemplateKey
from agentcube.router.problems import NoSuchRoute
from agentcube.wire.names import KINDS, SANDBOX_CALLS

_INVOCATION = re.compile(
    rb"/v1/namespaces/([^/?]+)/("
    + b"|".join(p.encode() for p in KINDS)
    + rb")/([^/?]+)/invocations(/.*|\?.*|)"
).fullmatch
_SANDBOX_CALL = re.compile(
    rb"/v1/sessions/([^/?]+)/((?:" + b"|".join(c.encode() for c in SANDBOX_CALLS) + rb")(?:[/?].*|))"
).fullmatch
_MANAGED = re.compile(
    rb"/(?:v1/(?:sessions|pools|code-interpreter|agent-runtime|namespaces)|openapi\.json|docs)(?:[/?].*|)"
).fullmatch
_HEALTH = re.compile(rb"/health(|/live|/ready)(?:\?.*|)").fullmatch


class Invocation(NamedTuple):
    """A call of the sandbox of a session of this template. `path` includes the query."""

    key: TemplateKey
    path: bytes


class SandboxCall(NamedTuple):
    """A call of the PicoD of one session, named in the path."""

    session_id: str
    path: bytes


class Managed(NamedTuple):
    """A call of the management API."""


class Health(NamedTuple):
    """A question about the Router itself: "", "/live" or "/ready"."""

    probe: bytes


Route = Invocation | SandboxCall | Managed | Health


def route(target: bytes) -> Route:
    """The meaning of a request target.

    Raises:
        NoSuchRoute: nothing is served there.
    """
    if match := _INVOCATION(target):
        namespace, plural, name, path = match.groups()
        if path[:1] != b"/":
            path = b"/" + path
        kind = Kind(KINDS[plural.decode()])
        return Invocation(TemplateKey(kind, namespace.decode(), name.decode()), path)
    if match := _SANDBOX_CALL(target):
        return SandboxCall(match[1].decode(), b"/api/" + match[2])
    if match := _HEALTH(target):
        return Health(match[1])
    if _MANAGED(target):
        return Managed()
    raise NoSuchRoute("nothing is served at this path; the API is described at /openapi.json")


def longest_prefix(prefixes: tuple[bytes, ...], path: bytes) -> int:
    """The index of the longest of `prefixes` that `path` begins with; they are sorted longest first.

    A prefix is a plain string, as in the Go system: `/api` also takes `/apiary`.

    Raises:
        NotFound: none matches.
    """
    for index, prefix in enumerate(prefixes):
        if path.startswith(prefix):
            return index
    raise NotFound("no port of this session's template serves this path", reason="no_port_for_path")
