"""A program's standard input: a pipe or a terminal, fed in order, each byte counted once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable
from typing import Callable

from agentcube.picod.problems import Problem
from agentcube.picod.terminal import Terminal

STALL_S = 30.0
"""How long a write waits for a program that reads nothing, and for writes before it."""


class Input:
    """Bytes on their way into a program; one write at a time. `accepted` counts what its pipe has taken.

    `open` is whether it takes more. On a terminal the end is said by its end-of-file character, and
    the terminal stays; a pipe, which is owned here, is closed.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, terminal: Terminal | None, *, stall_s: float = STALL_S
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._terminal = terminal
        self._stall_s = stall_s
        self._turn = asyncio.Lock()
        self._waiter: asyncio.Future[None] | None = None
        self._last = b""
        self._why = ("stdin_closed", "standard input was closed before")
        self.accepted = 0
        self.open = True
        os.set_blocking(fd, False)

    async def write(self, read: Callable[[], Awaitable[bytes]], offset: int | None, *, close: bool) -> bool:
        """Write what `read` gives until it gives b"". Returns False when the program left it unread.

        `offset` is where it begins: what was accepted before is skipped, so that a write may be
        repeated, and one that says nothing new succeeds even after the end.

        Raises:
            Problem: `invalid` for an offset beyond what was accepted, `stdin_closed`, `process_ended`.
        """
        try:
            await asyncio.wait_for(self._turn.acquire(), self._stall_s)
        except asyncio.TimeoutError:
            return False
        try:
            if offset is not None and offset > self.accepted:
                raise Problem("invalid", f"offset {offset} is beyond the {self.accepted} bytes accepted")
            skip = 0 if offset is None else self.accepted - offset
            if not self.open and offset is None:
                raise self._refusal()
            while True:
                data = await read()
                if not data:
                    break
                fresh = data[skip:]
                skip -= len(data) - len(fresh)
                if not await self._put(fresh, self._stall_s):
                    return False
            if close and self.open:
                return await self._finish(self._stall_s)
            return True
        finally:
            self._turn.release()

    async def feed(self, data: bytes) -> None:
        """Write all of `data`, however long the program takes, and close. A program that reads no more is fine."""
        async with self._turn:
            try:
                await self._put(data, None)
                await self._finish(None)
            except Problem:
                pass

    def end(self) -> None:
        """The program has ended: whatever is still to be written is refused. Idempotent."""
        self._shut(("process_ended", "the process has ended"))

    async def _finish(self, patience_s: float | None) -> bool:
        if self._terminal is not None and not await self._push(
            self._terminal.end_of_file(self._last), patience_s
        ):
            return False
        self._shut(self._why)
        return True

    def _refusal(self) -> Problem:
        code, detail = self._why
        return Problem(code, detail, offset=self.accepted)

    def _shut(self, why: tuple[str, str]) -> None:
        self._why = why
        if self.open:
            self.open = False
            self._wake()
            if self._terminal is None:
                os.close(self._fd)

    async def _put(self, data: bytes, patience_s: float | None) -> bool:
        """Write and count `data`; False when the program takes nothing for `patience_s`."""
        before = self.accepted
        whole = await self._push(data, patience_s, counted=True)
        if self.accepted > before:
            self._last = data[self.accepted - before - 1 :][:1]
        return whole

    async def _push(self, data: bytes, patience_s: float | None, *, counted: bool = False) -> bool:
        view = memoryview(data)
        while view:
            if not self.open:
                raise self._refusal()
            try:
                size = os.write(self._fd, view)
            except BlockingIOError:
                if not await self._writable(patience_s):
                    return False
                continue
            except OSError:
                self._shut(("stdin_closed", "the program has closed its standard input"))
                continue
            view = view[size:]
            self.accepted += size if counted else 0
        return True

    async def _writable(self, patience_s: float | None) -> bool:
        self._waiter = self._loop.create_future()
        self._loop.add_writer(self._fd, self._wake)
        try:
            await asyncio.wait_for(self._waiter, patience_s)
        except asyncio.TimeoutError:
            return False
        finally:
            self._wake()
        return True

    def _wake(self) -> None:
        if self._waiter is not None:
            self._loop.remove_writer(self._fd)
            if not self._waiter.done():
                self._waiter.set_result(None)
            self._waiter = None
