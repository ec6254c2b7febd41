"""One connection to a Redis or Valkey server: RESP3, pipelined, with pushes on the same stream.

What is called within one turn of the event loop leaves in one write. Answers come in the order of the
calls, and a push about a change comes after every answer from before that change: one stream is one
order, and that is what keeps the session table true (docs/decisions/0018).

Nothing here waits: a caller awaits its future, and whoever owns the link decides when it is dead.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

import hiredis

from agentcube.errors import StoreFailed
from agentcube.stores.redis.address import Place

Reply = Any
"""What a server answers: bytes, int, float, None, list, dict, or `ReplyError`. Its reader checks the shape."""

Command = Sequence[str | bytes | int]
ReplyError = hiredis.ReplyError

_NOTHING = object()
_UNSENT_MAX = 64 << 20  # bytes that the socket has not taken: a server that reads nothing


class LinkLost(Exception):
    """The connection ended before the answer came: whether the call was carried out is not known."""


def in_words(exc: Exception) -> str:
    """What went wrong with a connection, without what Python adds to it."""
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, OSError) and exc.errno and not isinstance(exc, ssl.SSLError):
        return os.strerror(exc.errno).lower() if exc.errno > 0 else str(exc.strerror)
    return str(exc) or type(exc).__name__


def accepted(command: str, reply: Reply) -> Reply:
    """The answer to a command. Raises StoreFailed when that was refused."""
    if isinstance(reply, ReplyError):
        raise StoreFailed(f"{command} was refused: {reply}")
    return reply


async def said(link: Link, *command: str | int) -> Reply:
    """What the server answers to a command. Raises StoreFailed when that was refused, LinkLost."""
    return accepted(str(command[0]), await link.call(*command))


class Link(asyncio.Protocol):
    """Get one from `open`; `on_push` hears of every push, as a list whose first item is its kind."""

    def __init__(self, place: Place, *, on_push: Callable[[list[Reply]], None], pending_max: int) -> None:
        self.place = place
        self._loop = asyncio.get_running_loop()
        self._on_push = on_push
        self._pending_max = pending_max
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._pending: deque[_Waiting] = deque()
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._why = ""
        self._retired = False
        self.lost = asyncio.Event()
        """Set once the connection is of no more use."""

    @classmethod
    async def open(
        cls,
        place: Place,
        *,
        on_push: Callable[[list[Reply]], None] = lambda push: None,
        pending_max: int = 100,
        tls: ssl.SSLContext | None = None,
    ) -> Self:
        """Connect. Raises OSError (TLS errors are some). Cancellation leaves nothing open."""
        loop = asyncio.get_running_loop()
        link = cls(place, on_push=on_push, pending_max=pending_max)
        if place.path:
            await loop.create_unix_connection(lambda: link, place.path)
        else:
            await loop.create_connection(lambda: link, place.host, place.port, ssl=tls)
        return link

    @property
    def why(self) -> str:
        """Why the link is lost; "" while it is not."""
        return self._why

    def call(self, *command: str | bytes | int, urgent: bool = False) -> asyncio.Future[Reply]:
        """Send one command; the future has its answer, a `ReplyError` included, or raises LinkLost.

        Raises LinkLost, and StoreFailed when too many calls wait (not if `urgent`).
        """
        if not urgent:
            self._must_have_room()
        return self._send((command,), 0)

    def calls(self, commands: Sequence[Command]) -> asyncio.Future[list[Reply]]:
        """Send several commands; the future has all answers, in order. Raises as `call` does."""
        self._must_have_room()
        return self._send(commands, len(commands))

    def _must_have_room(self) -> None:
        if len(self._pending) >= self._pending_max or self._stuck():
            raise StoreFailed("too many calls wait for the session store; try again")

    def _send(self, commands: Sequence[Command], wanted: int) -> asyncio.Future[Reply]:
        if self._why:
            raise LinkLost(self._why)
        if not self._unsent:
            self._loop.call_soon(self._flush)
        for command in commands:
            self._unsent.append(hiredis.pack_command(tuple(command)))  # type: ignore[arg-type]  # its stub: one word
        waiting = _Waiting(self._loop.create_future(), wanted)
        self._pending.append(waiting)
        return waiting.future

    def _stuck(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() > _UNSENT_MAX

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(unsent))

    def retire(self, why: str, *, within_s: float) -> None:
        """Take no more calls; those under way may still be answered, for so long. `lost` from now on."""
        if self._why:
            return
        self._why, self._retired = why, True
        self.lost.set()
        if self._pending:
            self._loop.call_later(within_s, self.abort, why)
        else:
            self.close()

    def abort(self, why: str) -> None:
        """Give the connection up; everybody who waits hears LinkLost."""
        self._end(why)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """End the connection in order: what was sent is still delivered, whatever is answered."""
        self._flush()
        self._end("the session store is closed")
        if self._transport is not None:
            self._transport.close()

    def _end(self, why: str) -> None:
        self._why = self._why or why
        self.lost.set()
        while self._pending:
            self._pending.popleft().fail(LinkLost(self._why))

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are like it, but no subclasses

    def connection_lost(self, exc: Exception | None) -> None:
        why = "the session store hung up"
        self._end(why if exc is None else f"the session store's connection broke ({in_words(exc)})")

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING:
                if type(reply) is hiredis.PushNotification:
                    self._on_push(reply)
                elif pending:
                    if pending[0].take(reply):
                        pending.popleft()
                elif not self._why:
                    self.abort("the session store answered what nobody asked")
        except hiredis.ProtocolError:
            self.abort("the session store speaks no RESP3")
        if self._retired and not pending:
            self.close()


class _Waiting:
    """A caller, and the answers it has so far; `wanted` 0: one answer, not in a list."""

    __slots__ = ("_replies", "_wanted", "future")

    def __init__(self, future: asyncio.Future[Reply], wanted: int) -> None:
        self.future = future
        self._replies: list[Reply] = []
        self._wanted = wanted

    def take(self, reply: Reply) -> bool:
        """Hand an answer over; whether it was the last one."""
        if self._wanted:
            self._replies.append(reply)
            if len(self._replies) < self._wanted:
                return False
            reply = self._replies
        if not self.future.done():  # else the caller has gone
            self.future.set_result(reply)
        return True

    def fail(self, error: Exception) -> None:
        """There will be no answer."""
        if not self.future.done():
            self.future.set_exception(error)
