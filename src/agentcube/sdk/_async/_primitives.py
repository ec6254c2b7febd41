"""What the two halves do differently. This file and its sync counterpart are both written by hand."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.http import SENDING
from agentcube.sdk._core.sources import Source

Lock = asyncio.Lock
sleep = asyncio.sleep
T = TypeVar("T")
log = logging.getLogger("agentcube.sdk")


async def token_of(auth: AuthProvider) -> str:
    """The provider's token, awaited where the provider is asynchronous."""
    token = auth.get_token()
    return await token if inspect.isawaitable(token) else token


async def body_of(upload: Source) -> AsyncIterator[bytes]:
    """The body of an upload; it is read in a thread, because a pipe may block."""
    upload.rewind()
    while chunk := await asyncio.to_thread(upload.read):
        yield chunk


def traced(sending: Callable[[], None]) -> Callable[[str, Any], Awaitable[None]]:
    """The HTTP client's trace function that calls `sending` when a request goes out."""

    async def trace(name: str, info: Any) -> None:
        if name.endswith(SENDING):
            sending()

    return trace


async def called(callback: Callable[[T], object] | None, argument: T) -> None:
    """Call the user's function, if there is one; a coroutine function is awaited."""
    if callback is not None:
        result = callback(argument)
        if inspect.isawaitable(result):
            await result


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """The result of a function that may block."""
    return await asyncio.to_thread(function, *arguments)


async def whatever_happens(work: Callable[[], Awaitable[object]], what: str, *, within_s: float) -> None:
    """Do `work` to its end although the task is cancelled, again or already, but no longer than `within_s`.

    Its failure is logged: whoever is being cancelled has an exception already. A new cancellation is raised
    afterwards.
    """
    doing = asyncio.ensure_future(asyncio.wait_for(work(), within_s))
    cancelled: asyncio.CancelledError | None = None
    while not doing.done():
        try:
            await asyncio.wait({doing})
        except asyncio.CancelledError as exc:
            cancelled = exc
    if doing.cancelled():
        log.warning("%s: cancelled", what)
    elif (failure := doing.exception()) is not None:
        log.warning("%s: %s", what, failure or type(failure).__name__)
    if cancelled is not None:
        raise cancelled
