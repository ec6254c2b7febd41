"""Requests that the wire server saw, and its answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    """A canned answer. `promise`: a Content-Length that is not kept. `events`: a stream of them instead of `body`."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    promise: int | None = None
    drop: bool = False
    hang: bool = False
    events: AsyncIterator[dict[str, Any]] | None = None


def of(value: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"content-type": "application/json", **headers})


def problem(status: int, code: str, detail: str, *, retryable: bool = False, **headers: str) -> Answer:
    value = {
        "type": f"https://agentcube.dev/problems/{code.replace('_', '-')}",
        "title": code,
        "status": status,
        "detail": detail,
        "error": detail,
        "code": code,
        "retryable": retryable,
        "request_id": "req-1",
    }
    plain = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value).encode(), {"content-type": "application/problem+json", **plain})


def stream(*told: dict[str, Any]) -> Answer:
    """An answer that tells these events and ends."""

    async def telling() -> AsyncIterator[dict[str, Any]]:
        for event in told:
            yield event

    return Answer(events=telling())
