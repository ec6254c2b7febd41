"""A session's ports on the wire: what is asked, and what is read from the answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agentcube.sdk._core.errors import InvalidArgument, UnexpectedAnswer
from agentcube.sdk._core.requests import Duration, Request, seconds, segment
from agentcube.sdk._core.results import text_of, time_of


@dataclass(frozen=True)
class PortInfo:
    """A port of a session that may be reached.

    `url` is its own host, where browsers see nothing but this port; they get in with a share link. Empty where
    the server gives ports no hosts. `api_url` is for programs, which send their API key. `declared` ports are
    the template's.
    """

    port: int
    name: str
    declared: bool
    url: str
    api_url: str


@dataclass(frozen=True)
class ShareLink:
    """A link to a port: whoever has `url` may use the port until `expires_at`. Treat it as a password."""

    url: str
    port: int
    expires_at: datetime | None = None


def list_ports(base: str, session_id: str) -> Request:
    """The ports of a session."""
    return _request("GET", _ports(base, session_id), f"list the ports of session {session_id}")


def expose_port(base: str, session_id: str, port: int) -> Request:
    """Exposure of a port. Repeatable: one that is exposed is left so."""
    what = f"expose port {port} of session {session_id}"
    return _request("PUT", f"{_ports(base, session_id)}/{_checked(port)}", what)


def withdraw_port(base: str, session_id: str, port: int) -> Request:
    """The end of an exposure and of its links."""
    what = f"withdraw port {port} of session {session_id}"
    return _request("DELETE", f"{_ports(base, session_id)}/{_checked(port)}", what, repeatable=False)


def share_port(base: str, session_id: str, port: int, ttl: Duration | None) -> Request:
    """A share link. Repeatable: another link does no harm."""
    body = {"port": _checked(port), "ttl": seconds(ttl)}
    return _request(
        "POST",
        f"{base}/v1/sessions/{segment(session_id, 'session id')}/shares",
        f"share port {port} of session {session_id}",
        json={key: value for key, value in body.items() if value is not None},
    )


def _ports(base: str, session_id: str) -> str:
    return f"{base}/v1/sessions/{segment(session_id, 'session id')}/ports"


def _checked(port: int) -> int:
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise InvalidArgument(f"{port!r} is no port: it is a number from 1 to 65535")
    return port


def _request(method: str, url: str, what: str, *, json: Any = None, repeatable: bool = True) -> Request:
    return Request(method=method, url=url, what=what, json=json, repeatable=repeatable)


def port_info(value: Mapping[str, Any], what: str, router_url: str) -> PortInfo:
    """One port."""
    port = value.get("port")
    if not isinstance(port, int):
        raise UnexpectedAnswer(f"{what}: the answer names no port")
    return PortInfo(
        port=port,
        name=text_of(value, "name"),
        declared=value.get("declared") is True,
        url=text_of(value, "url"),
        api_url=router_url + text_of(value, "path", what),
    )


def share_link(value: Mapping[str, Any], what: str) -> ShareLink:
    """A link. Raises UnexpectedAnswer where the server has no hosts for ports: a link would lead nowhere."""
    url = text_of(value, "url")
    if not url:
        raise UnexpectedAnswer(f"{what}: this server gives ports no hosts of their own (--ports-domain)")
    port = value.get("port")
    return ShareLink(
        url=url, port=port if isinstance(port, int) else 0, expires_at=time_of(value.get("expires_at"))
    )
