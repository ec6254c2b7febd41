"""The event loop of top-level await: one for all cells, so that what one cell begins another can await."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Callable


class Loops:
    """Makes the loop when a cell first awaits."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any], interrupted: Callable[[], None]) -> Any:
        """Run to the end. An interrupt that meets no code of the coroutine cancels it, after `interrupted`."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        task = self._loop.create_task(coroutine)
        try:
            return self._loop.run_until_complete(task)
        except KeyboardInterrupt:
            if task.done():
                raise
            interrupted()
            task.cancel()
            return self._loop.run_until_complete(task)

    def close(self) -> None:
        """Let the next cell that awaits make a new loop."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def idle(self, fd: int) -> None:
        """Where cells have left tasks behind: let them go on until `fd` is readable."""
        loop = self._loop
        if loop is None or loop.is_closed() or not asyncio.all_tasks(loop):
            return
        readable = loop.create_future()
        loop.add_reader(fd, _settle, readable)
        try:
            loop.run_until_complete(readable)
        finally:
            loop.remove_reader(fd)


def _settle(readable: asyncio.Future[None]) -> None:
    if not readable.done():
        readable.set_result(None)
