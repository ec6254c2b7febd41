"""What handlers share: idempotency keys, and work that is not wanted once its client has left."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Coroutine
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.requests import Request

from agentcube.errors import AgentCubeError, Invalid
from agentcube.manager.access import subject_of
from agentcube.manager.creation import Repeatable
from agentcube.wire.names import IDEMPOTENCY_HEADER, KEY_CHARS_MAX

T = TypeVar("T")


class ClientLeft(AgentCubeError):
    """Nobody reads the answer any more. 499 as proxies log it; it is never seen on a wire."""

    code, status, title = "client_left", 499, "Client left"


def repeatable(request: Request, body: BaseModel) -> Repeatable | None:
    """The request's idempotency key, scoped to caller and route; None without one. Raises Invalid."""
    key = request.headers.get(IDEMPOTENCY_HEADER)
    if key is None:
        return None
    if not 0 < len(key) <= KEY_CHARS_MAX or not key.isascii() or not key.isprintable():
        raise Invalid(f"Idempotency-Key must have 1 to {KEY_CHARS_MAX} printable ASCII characters")
    scope = json.dumps([subject_of(request).name, request.method, request.url.path, key])
    said = json.dumps(body.model_dump(mode="json", exclude_unset=True), sort_keys=True)
    return Repeatable(
        key=hashlib.sha256(scope.encode()).hexdigest(), fingerprint=hashlib.sha256(said.encode()).hexdigest()
    )


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do `work` for as long as the client waits for it; raises ClientLeft when it stops.

    The request's body must have been read.
    """
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientLeft
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.wait({doing, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
