"""Problem responses in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from agentcube.wire.names import PROBLEM_TYPE

_MEANINGS = {
    400: "Malformed, or something that cannot be; `errors` points at the fields.",
    401: "No credentials, or they do not verify.",
    404: "Absent, or not the caller's to know.",
    409: "The phase does not allow this, or the Idempotency-Key was used with another body.",
    413: "The body is over the limit.",
    429: "A limit was reached; see Retry-After.",
    502: "The sandbox could not be started or has failed; `code` says how.",
    503: "No capacity, or the server is starting or stopping; see Retry-After.",
    504: "The sandbox was not ready in time.",
}


def answers(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, besides those that every route has."""
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in sorted({*statuses, 413} if 400 in statuses else statuses)
    }
