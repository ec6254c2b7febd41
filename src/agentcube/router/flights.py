"""One call per key at a time: whoever asks meanwhile waits for the same outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Flights(Generic[T]):
    """Shared calls. A waiter that is cancelled does not cancel the call for the others."""

    __slots__ = ("_flying",)

    def __init__(self) -> None:
        self._flying: dict[Hashable, asyncio.Task[T]] = {}

    async def join(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The outcome of the call that is under way for `key`, or of a new one."""
        task = self._flying.get(key)
        if task is None or task.done():
            task = asyncio.get_running_loop().create_task(call())
            self._flying[key] = task
            task.add_done_callback(lambda done: self._landed(key, done))
        return await asyncio.shield(task)

    def _landed(self, key: Hashable, task: asyncio.Task[T]) -> None:
        if self._flying.get(key) is task:
            del self._flying[key]
        if not task.cancelled():
            task.exception()  # every waiter has it; without any, it is nobody's

    async def cancel(self) -> None:
        """End all calls; returns when they have ended."""
        tasks = list(self._flying.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
