"""Builds the requests of the SDK. Pure: values in, a `Request` out.

Everything that names something in a path is quoted here, so that no name can reach another route.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Self
from urllib.parse import quote

from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.sources import Source
from agentcube.wire.names import BUILT_IN_NAMESPACE, IDEMPOTENCY_HEADER, KINDS, PLURALS, SESSION_HEADER

CREATE_TIMEOUT_S = 120.0  # a cold start may unpack an image; the server has a deadline of its own below this
CALL_TIMEOUT_S = 30.0
DELETE_TIMEOUT_S = 60.0
EXECUTE_TIMEOUT_S = 120.0  # what the Go system's SDK sends when it is given none
EXECUTE_GRACE_S = 10.0  # for PicoD to kill the tree and say so before we stop listening
CHUNK_BYTES = 64 * 1024

QueryValue = str | int
Duration = float | str | timedelta
"""Seconds, text such as "1h30m", or a timedelta."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call. `repeatable`: sending it twice does the same as once. `timeout_s` is the longest silence.

    The body is one of `json`, `content` (bytes) and `upload` (streamed).
    """

    method: str
    url: str
    what: str
    params: Mapping[str, QueryValue] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    upload: Source | None = None
    timeout_s: float = CALL_TIMEOUT_S
    repeatable: bool = False

    @property
    def can_resend(self) -> bool:
        """Whether the body is still there after an attempt."""
        return self.upload is None or self.upload.seekable

    def waiting(self, timeout_s: float) -> Self:
        """The same with another longest silence."""
        return replace(self, timeout_s=timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """How to call PicoD in one session: the URL before `/execute`, and the headers that name the session."""

    prefix: str
    session_id: str
    headers: Mapping[str, str] = field(default_factory=dict)


def segment(value: str, what: str) -> str:
    """`value` as one segment of a path.

    Raises:
        InvalidArgument: it is empty, or a segment that URLs give a meaning of their own.
    """
    if not isinstance(value, str) or value in ("", ".", ".."):
        raise InvalidArgument(f"{value!r} is no {what}")
    return quote(value, safe="")


def plural_of(kind: str) -> str:
    """The path segment of a kind: "AgentRuntime" or "agent-runtimes" gives "agent-runtimes"."""
    plural = PLURALS.get(kind, kind)
    if plural not in KINDS:
        raise InvalidArgument(f"unknown kind {kind!r}: it is one of {', '.join(PLURALS)}")
    return plural


def place_of_session(router_url: str, session_id: str) -> Place:
    """The place of any session, by the session's id."""
    prefix = f"{router_url}/v1/sessions/{segment(session_id, 'session id')}"
    return Place(prefix=prefix, session_id=session_id)


def place_of_interpreter(router_url: str, namespace: str, name: str, session_id: str) -> Place:
    """The place of a CodeInterpreter session, by the route that the Go system has."""
    base = invocations(router_url, "CodeInterpreter", namespace, name)
    return Place(prefix=f"{base}api", session_id=session_id, headers={SESSION_HEADER: session_id})


def invocations(router_url: str, kind: str, namespace: str, name: str) -> str:
    """The URL of a template's invocations, with the trailing slash."""
    space, named = segment(namespace, "namespace"), segment(name, "template name")
    return f"{router_url}/v1/namespaces/{space}/{plural_of(kind)}/{named}/invocations/"


# --- the contract kept for existing clients ---------------------------------------------------------------


def create_compat(
    manager_url: str, kind: str, *, name: str, namespace: str, ttl_s: int, metadata: Mapping[str, str]
) -> Request:
    """Creation of a session as the Go system has it."""
    if not name or not namespace:
        raise InvalidArgument("name and namespace must not be empty")
    if isinstance(ttl_s, bool) or not isinstance(ttl_s, int) or ttl_s <= 0:
        raise InvalidArgument(f"ttl must be a positive whole number of seconds, not {ttl_s!r}")
    return Request(
        method="POST",
        url=f"{manager_url}/v1/{_SINGULAR[kind]}",
        what=f"create a session of {kind} {namespace}/{name}",
        json={"name": name, "namespace": namespace, "ttl": ttl_s, "metadata": dict(metadata)},
        headers=_idempotency(None),
        timeout_s=CREATE_TIMEOUT_S,
        repeatable=True,
    )


def delete_compat(manager_url: str, kind: str, session_id: str) -> Request:
    """Deletion of a session as the Go system has it; 404 counts as success there."""
    return Request(
        method="DELETE",
        url=f"{manager_url}/v1/{_SINGULAR[kind]}/sessions/{segment(session_id, 'session id')}",
        what=f"delete session {session_id}",
        timeout_s=DELETE_TIMEOUT_S,
        repeatable=True,
    )


def bootstrap(base: str, *, what: str, timeout_s: float) -> Request:
    """The request that makes an AgentRuntime session. Not repeatable: each one makes a session."""
    return Request(method="GET", url=base, what=what, timeout_s=max(timeout_s, CREATE_TIMEOUT_S))


def invoke(base: str, session_id: str, payload: Any, *, path: str, what: str, timeout_s: float) -> Request:
    """One call of the agent's own server. `path` may carry a query."""
    return Request(
        method="POST",
        url=base + path.lstrip("/"),
        what=what,
        json=payload,
        headers={SESSION_HEADER: session_id},
        timeout_s=timeout_s,
    )


# --- management -------------------------------------------------------------------------------------------


def session_of(
    kind: str,
    name: str,
    *,
    namespace: str,
    ttl: Duration | None = None,
    idle_timeout: Duration | None = None,
    suspend_after: Duration | None = None,
    env: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    resources: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a creation; what is left out the template says."""
    return {
        "kind": kind,
        "namespace": namespace,
        "name": name,
        "ttl": seconds(ttl),
        "idle_timeout": seconds(idle_timeout),
        "suspend_after": seconds(suspend_after),
        "env": dict(env) if env else None,
        "metadata": dict(metadata) if metadata else None,
        "resources": dict(resources) if resources else None,
    }


def create_session(base: str, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Request:
    """Creation of a session; None values of `body` are left out."""
    return Request(
        method="POST",
        url=f"{base}/v1/sessions",
        what=f"create a session of {body.get('kind')} {body.get('namespace')}/{body.get('name')}",
        json={key: value for key, value in body.items() if value is not None},
        headers=_idempotency(idempotency_key),
        timeout_s=CREATE_TIMEOUT_S,
        repeatable=True,
    )


def get_session(base: str, session_id: str) -> Request:
    """One session."""
    return _session(base, "GET", session_id, f"get session {session_id}", repeatable=True)


def update_session(base: str, session_id: str, body: Mapping[str, Any]) -> Request:
    """Change of a session's timeouts and metadata. Not repeatable: others may change it meanwhile."""
    return _session(base, "PATCH", session_id, f"update session {session_id}", json=dict(body))


def delete_session(base: str, session_id: str) -> Request:
    """Deletion of a session."""
    what = f"delete session {session_id}"
    return _session(base, "DELETE", session_id, what, timeout_s=DELETE_TIMEOUT_S, repeatable=True)


def list_sessions(base: str, filters: Mapping[str, str | None], *, limit: int, cursor: str | None) -> Request:
    """One page of sessions."""
    params: dict[str, QueryValue] = {key: value for key, value in filters.items() if value is not None}
    params["limit"] = limit
    if cursor:
        params["cursor"] = cursor
    return Request(
        method="GET", url=f"{base}/v1/sessions", what="list sessions", params=params, repeatable=True
    )


def template(base: str, method: str, kind: str, namespace: str, name: str, *, json: Any = None) -> Request:
    """PUT, GET or DELETE of one template. All three are idempotent."""
    space, named = segment(namespace, "namespace"), segment(name, "template name")
    return Request(
        method=method,
        url=f"{base}/v1/namespaces/{space}/{plural_of(kind)}/{named}",
        what=f"{method.lower()} {KINDS[plural_of(kind)]} {namespace}/{name}",
        json=json,
        repeatable=True,
    )


def list_templates(
    base: str, kind: str, namespace: str, *, limit: int | None = None, cursor: str | None = None
) -> Request:
    """One page of the templates of a kind in a namespace."""
    params: dict[str, QueryValue] = {}
    if limit is not None:
        params["limit"] = limit
    if cursor:
        params["cursor"] = cursor
    return Request(
        method="GET",
        url=f"{base}/v1/namespaces/{segment(namespace, 'namespace')}/{plural_of(kind)}",
        what=f"list {plural_of(kind)} in {namespace}",
        params=params,
        repeatable=True,
    )


def list_pools(base: str) -> Request:
    """The warm pools."""
    return Request(method="GET", url=f"{base}/v1/pools", what="list pools", repeatable=True)


def seconds(value: Duration | None) -> float | str | None:
    """A duration as the management API takes it. Text is checked by the server."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if value is None or isinstance(value, str) or value > 0:
        return value
    raise InvalidArgument(f"a duration must be positive, not {value!r}")


def address_of(manifest: Mapping[str, Any], namespace: str | None = None) -> tuple[str, str, str]:
    """Kind, namespace and name of a manifest; `namespace` is for one that names none.

    Raises:
        InvalidArgument: it is no manifest of a kind that exists, or has no name.
    """
    kind = manifest.get("kind")
    if not isinstance(kind, str) or kind not in PLURALS:
        raise InvalidArgument(f"unknown kind {kind!r} in the manifest: it is one of {', '.join(PLURALS)}")
    meta = manifest.get("metadata")
    name = meta.get("name") if isinstance(meta, Mapping) else None
    if not isinstance(meta, Mapping) or not isinstance(name, str) or not name:
        wrong = (
            "has no metadata.name" if name in (None, "") else f"has a metadata.name that is no text: {name!r}"
        )
        raise InvalidArgument(f"the manifest of kind {kind} {wrong}")
    return kind, str(meta.get("namespace") or namespace or BUILT_IN_NAMESPACE), name


def duration(seconds: float) -> str:
    """Seconds as the wire's duration text, to the millisecond and at least one."""
    whole = round(seconds * 1000)
    return f"{whole // 1000}s" if whole and whole % 1000 == 0 else f"{max(1, whole)}ms"


_SINGULAR = {"CodeInterpreter": "code-interpreter", "AgentRuntime": "agent-runtime"}


def _session(base: str, method: str, session_id: str, what: str, **rest: Any) -> Request:
    url = f"{base}/v1/sessions/{segment(session_id, 'session id')}"
    return Request(method=method, url=url, what=what, **rest)


def _idempotency(key: str | None) -> dict[str, str]:
    return {IDEMPOTENCY_HEADER: key or uuid.uuid4().hex}


def named(path: str) -> str:
    """The path, when it can be one. Raises InvalidArgument."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise InvalidArgument(f"{path!r} is no path")
    return path
