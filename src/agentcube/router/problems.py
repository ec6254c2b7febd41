"""Answers that the Router makes itself: its own error classes and problem documents (RFC 9457)."""

from __future__ import annotations

import json

from agentcube import http1
from agentcube.errors import AgentCubeError, NotFound, SandboxTimedOut, Unauthenticated
from agentcube.router.heads import Request
from agentcube.wire.names import ERROR_HEADER, PROBLEM_BASE, PROBLEM_TYPE

_OWN = [
    (b"content-type", PROBLEM_TYPE.encode()),
    (ERROR_HEADER.encode(), b"router"),
    (b"cache-control", b"no-store"),
]


class NoSuchRoute(NotFound):
    """The Router serves nothing at this path."""

    code, title = "route_not_found", "No such path"


class Malformed(AgentCubeError):
    """The request is not HTTP/1.1 as RFC 9112 has it; `status` is the instance's own."""

    code, title = "malformed_request", "Malformed request"

    def __init__(self, error: http1.ProtocolError) -> None:
        super().__init__(error.detail)
        self.status = error.status  # type: ignore[misc]  # the parser knows which of 400, 413, 431, 501, 505


class HeadTimedOut(AgentCubeError):
    """The client did not finish its request head in time."""

    code, status, title, retryable = "head_timed_out", 408, "Request head too slow", True


class BodyTimedOut(AgentCubeError):
    """The client stopped in the middle of its body."""

    code, status, title, retryable = "body_timed_out", 408, "Request body too slow", True


class ConnectTimedOut(SandboxTimedOut):
    """The sandbox did not accept a connection in time. Nothing was sent."""

    code, title, retryable = "connect_timed_out", "Sandbox did not accept a connection", True


class FirstByteTimedOut(SandboxTimedOut):
    """The sandbox has the request and gave no answer in time."""

    code, title = "first_byte_timed_out", "Sandbox gave no answer in time"


class UploadTimedOut(SandboxTimedOut):
    """The sandbox stopped reading the request's body."""

    code, title = "upload_timed_out", "Sandbox stopped reading"


class ExchangeTimedOut(SandboxTimedOut):
    """The exchange took as long as any may take here."""

    code, title = "exchange_timed_out", "Exchange took too long"


class BadAnswer(AgentCubeError):
    """What the sandbox answered is not HTTP/1.1 as RFC 9112 has it."""

    code, status, title = "bad_answer", 502, "Sandbox gave a malformed answer"


class UpgradeRequired(AgentCubeError):
    """What this path serves begins with an upgrade (RFC 9110 §15.5.22)."""

    code, status, title = "upgrade_required", 426, "Upgrade required"


def render(error: AgentCubeError, request: Request) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of the answer to `request` that says `error`."""
    document = {
        **error.context,
        "type": PROBLEM_BASE + error.code.replace("_", "-"),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": request.target.partition(b"?")[0].decode("ascii", "replace"),
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request.id.decode("ascii"),
        "error": error.detail,  # what clients of the Go system print
    }
    headers = list(_OWN)
    if isinstance(error, Unauthenticated):
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, UpgradeRequired):
        headers += [(b"upgrade", b"tcp"), (b"connection", b"upgrade")]
    if error.retryable and error.status in (429, 503):
        headers.append((b"retry-after", b"1"))
    return error.status, headers, json.dumps(document).encode()
