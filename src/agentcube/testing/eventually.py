"""Waiting for a state, for the few places where nothing can be awaited instead."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def eventually(
    predicate: Callable[[], bool | Awaitable[bool]], *, within: float = 10.0, every: float = 0.01
) -> None:
    """Return once `predicate` holds. Raises TimeoutError after `within` seconds; asks each `every`."""
    async with asyncio.timeout(within):
        while not await _holds(predicate):  # noqa: ASYNC110 - the state is not ours to be notified of
            await asyncio.sleep(every)


async def _holds(predicate: Callable[[], bool | Awaitable[bool]]) -> bool:
    answer = predicate()
    return await answer if inspect.isawaitable(answer) else answer
