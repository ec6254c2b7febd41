"""Servers of tests, on an event loop in a thread of their own: sync clients and subprocesses can use them, too."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextmanager
def serving(loop: asyncio.AbstractEventLoop, serve: Serve) -> Iterator[str]:
    """The URL at which `serve` gets every connection, until the block ends; what still runs then is cancelled."""
    ready, stop, urls = threading.Event(), asyncio.Event(), []

    async def main() -> None:
        listener = await asyncio.start_server(serve, "127.0.0.1", 0)
        urls.append(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}")
        ready.set()
        await stop.wait()
        listener.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
