"""Errors as RFC 9457 problem documents: the one translation, for every server of ours but PicoD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agentcube.errors import AgentCubeError
from agentcube.wire.names import PROBLEM_BASE
from agentcube.wire.problems import InvalidFields

RETRY_AFTER_S = 1
"""What a client is told to wait when the error does not know better."""

_RESERVED = frozenset(
    {"type", "title", "status", "detail", "instance", "code", "retryable", "request_id", "error", "errors"}
)


def problem(error: AgentCubeError, *, instance: str, request_id: str) -> dict[str, Any]:
    """The problem document of `error`. `instance` is the request's path, without its query."""
    document: dict[str, Any] = {
        "type": PROBLEM_BASE + error.code.replace("_", "-"),
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "instance": instance,
        "code": error.code,
        "retryable": error.retryable,
        "request_id": request_id,
        "error": error.detail,  # what clients of the Go system print
    }
    if isinstance(error, InvalidFields):
        document["errors"] = [{"pointer": f.pointer, "message": f.message} for f in error.fields]
    document.update((name, value) for name, value in error.context.items() if name not in _RESERVED)
    return document


def problem_headers(error: AgentCubeError) -> Mapping[str, str]:
    """The headers that belong to the problem: Retry-After wherever it is retryable, the challenge on 401."""
    headers: dict[str, str] = {}
    if error.retryable:
        wait = error.context.get("retry_after_s", RETRY_AFTER_S)
        headers["Retry-After"] = (
            str(max(1, int(wait))) if isinstance(wait, int | float) else str(RETRY_AFTER_S)
        )
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return headers
