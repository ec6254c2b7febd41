"""Calls between processes of a test, over a unix socket: pickles with their length before them."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Answer = Callable[[str, tuple[Any, ...], dict[str, Any]], Awaitable[Any]]
"""What answers a call: its name and arguments."""


async def read(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises IncompleteReadError when the other side is gone."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    return pickle.loads(await reader.readexactly(size))


def write(writer: asyncio.StreamWriter, message: Any) -> None:
    data = pickle.dumps(message)
    writer.write(len(data).to_bytes(4, "big") + data)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: Answer) -> None:
    """Answer calls, many at once, until the other side is gone; what was asked for by then goes on."""
    tasks: set[asyncio.Task[None]] = set()

    async def one(number: int, name: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        try:
            outcome = (number, await to(name, args, options), None)
        except Exception as error:
            outcome = (number, None, error)
        if not writer.is_closing():
            write(writer, outcome)

    try:
        while True:
            task = asyncio.ensure_future(one(*await read(reader)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()
        if tasks:
            await asyncio.wait(tasks)


class Caller:
    """Asks the other side; many calls at once. `lost` is done when it is gone, and calls then fail."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self.lost: asyncio.Task[None]

    async def connect(self, path: Path) -> None:
        reader, self._writer = await asyncio.open_unix_connection(path)
        self.lost = asyncio.ensure_future(self._read(reader))

    async def call(self, name: str, *args: Any, **options: Any) -> Any:
        if self._writer is None or self.lost.done():
            raise ConnectionError("the other side is gone")
        self._number += 1
        waiting = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        write(self._writer, (self._number, name, args, options))
        return await waiting

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self.lost.cancel()

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                number, value, error = await read(reader)
                waiting = self._waiting.pop(number)
                if waiting.done():
                    continue  # who asked was cancelled
                if error is None:
                    waiting.set_result(value)
                else:
                    waiting.set_exception(error)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError("the other side is gone"))
