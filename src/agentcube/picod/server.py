"""The HTTP server: one `asyncio.Protocol` on http1, one task per request, everything bounded.

Requests of a connection are served one after the other; the next one waits in the buffer. It knows
no route: `handle` gets each request and writes its response, or raises a `Problem`.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Awaitable
from typing import Callable

from agentcube.http1 import CONTINUE, HEAD_BYTES_MAX, ProtocolError, parse_request, request_end, track
from agentcube.http1 import response as whole_response
from agentcube.picod.messages import Request, Response, Room
from agentcube.picod.problems import Problem

HEAD_S = 10.0  # from the first byte of a head to its end
IDLE_S = 300.0  # keep-alive: longer than the Router's pool keeps connections
BODY_IDLE_S = 30.0  # without a byte of a body that a handler waits for
WRITE_IDLE_S = 60.0  # without the client taking a byte
LINGER_S = 5.0  # how long the rest of a refused body is read, so that the client sees the answer
LINGER_BYTES = 64 * 1024 * 1024
BUFFER_BYTES_MAX = 256 * 1024  # body bytes that wait for a handler; more pauses the socket
CONNECTIONS_MAX = 512

Handler = Callable[[Request, Response], Awaitable[None]]
log = logging.getLogger("picod")


class Server:
    """All connections, and the one handler. `protocol` is what `loop.create_server` wants."""

    def __init__(self, loop: asyncio.AbstractEventLoop, handle: Handler) -> None:
        self.loop = loop
        self.handle = handle
        self.room = Room()
        self.connections: set[Connection] = set()

    def protocol(self) -> Connection:
        """The protocol of a new connection."""
        return Connection(self)


class Connection(asyncio.Protocol):
    """One client. Reading a head, or serving the request whose task is `_task`, or draining to the end."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._loop = server.loop
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._searched = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused_reading = False
        self._ended = False  # the client will send no more
        # The request in progress:
        self._body = track(0)
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._broken: ProtocolError | None = None
        self._owes_continue = False
        self._wake_reader: asyncio.Future[None] | None = None
        # The response in progress:
        self._wake_writer: asyncio.Future[None] | None = None
        self._can_write = True
        self._lingered: int | None = None

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connections.add(self)
        if len(self._server.connections) > CONNECTIONS_MAX:
            self._say(Problem("unavailable", f"{CONNECTIONS_MAX} connections are open already"))
        else:
            self._arm(IDLE_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)
        self._transport = None
        self._disarm()
        if self._task is not None:
            self._task.cancel()  # a foreground command dies with its caller
        for waiter in (self._wake_reader, self._wake_writer):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionResetError("the client is gone"))

    def data_received(self, data: bytes) -> None:
        if self._lingered is not None:
            self._lingered += len(data)
            if self._lingered > LINGER_BYTES:
                self._close()
            return
        if self._task is None:
            self._buffer += data
            self._next_request()
        else:
            self._take_body(data)

    def eof_received(self) -> bool:
        self._ended = True
        if self._task is None or self._lingered is not None or self._hung_up():
            return False  # asyncio closes; connection_lost ends what is under way
        if self._wake_reader is not None and not self._wake_reader.done():
            self._wake_reader.set_result(None)
        return True  # half closed: the response still goes out

    def pause_writing(self) -> None:
        self._can_write = False

    def resume_writing(self) -> None:
        self._can_write = True
        if self._wake_writer is not None and not self._wake_writer.done():
            self._wake_writer.set_result(None)

    # Reading

    def _next_request(self) -> None:
        """Start serving when the buffer holds a whole head."""
        if not self._buffer:
            self._arm(IDLE_S)
            return
        if self._searched == 0:
            self._arm(HEAD_S)
        try:
            data = bytes(self._buffer)
            end = request_end(data, self._searched, limit=HEAD_BYTES_MAX)
            if end < 0:
                self._searched = len(data)
                return
            head = parse_request(data[:end])
            self._body = track(head.body)
        except ProtocolError as exc:
            self._refuse(exc)
            return
        self._disarm()
        self._searched = 0
        self._buffer.clear()
        self._pieces, self._pieces_size, self._broken = [], 0, None
        self._owes_continue = head.expect_continue
        self._take_body(data[end:])
        request = Request(head, self, self._server.room)
        self._task = self._loop.create_task(self._serve(request, Response(request, self)))

    def _take_body(self, data: bytes) -> None:
        """Hand body bytes to the request in progress; what is behind them waits for the next one."""
        if not self._body.done and self._broken is None:
            before = len(self._pieces)
            try:
                taken = self._body.feed(data, self._pieces)
            except ProtocolError as exc:
                self._broken, taken = exc, len(data)
            self._pieces_size += sum(len(piece) for piece in self._pieces[before:])
            data = data[taken:]
            if self._wake_reader is not None and not self._wake_reader.done():
                self._wake_reader.set_result(None)
        self._buffer += data
        self._throttle()

    def _throttle(self) -> None:
        full = self._pieces_size > BUFFER_BYTES_MAX or len(self._buffer) > HEAD_BYTES_MAX
        if self._transport is None or full == self._paused_reading:
            return
        self._paused_reading = full
        if full:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    @property
    def reusable(self) -> bool:
        """See `Exchange`."""
        return self._body.done and self._broken is None and not self._ended

    async def read_body(self) -> bytes:
        """See `Exchange`."""
        while not self._pieces:
            if self._broken is not None:
                raise Problem("invalid", self._broken.detail, status=self._broken.status)
            if self._body.done:
                return b""
            if self._ended or self._transport is None:
                raise ConnectionResetError("the client is gone")
            if self._owes_continue:
                self._owes_continue = False
                self._transport.write(CONTINUE)
            self._wake_reader = self._loop.create_future()
            try:
                await asyncio.wait_for(self._wake_reader, BODY_IDLE_S)
            except asyncio.TimeoutError:
                raise Problem("request_timed_out", f"no byte of the body for {BODY_IDLE_S:.0f} s") from None
            finally:
                self._wake_reader = None
        data = b"".join(self._pieces)
        self._pieces, self._pieces_size = [], 0
        self._throttle()
        return data

    # Serving and writing

    async def _serve(self, request: Request, response: Response) -> None:
        """The top of a request's task."""
        try:
            await self._answer(request, response)
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client is gone, or must not take this for a whole answer
        finally:
            self._task = None
            request.close()
        self._after(response)

    async def _answer(self, request: Request, response: Response) -> None:
        try:
            await self._server.handle(request, response)
            return
        except Problem as exc:
            problem = exc
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            # A bug: its reason goes to the log, and nothing of it on the wire.
            log.exception("request failed: %s %s", request.method, request.id)
            problem = Problem("internal", "PicoD failed; its log has the reason")
        if not response.begun:
            await response.problem(problem)

    def _after(self, response: Response) -> None:
        """The response is written: go on with the next request, or end the connection."""
        if self._transport is None:
            return
        if not response.complete:
            self._abort()  # never a clean end of a body that is not whole
        elif not self.reusable:
            self._linger()
        elif not response.keep_alive:
            self._close()
        else:
            self._pieces, self._pieces_size = [], 0
            self._next_request()
            self._throttle()

    def post(self, data: bytes) -> None:
        """See `Exchange`."""
        if self._transport is None:
            raise ConnectionResetError("the client is gone")
        self._transport.write(data)

    async def write(self, data: bytes, patience_s: float = WRITE_IDLE_S) -> None:
        """See `Exchange`."""
        self.post(data)
        if self._can_write:
            return
        self._wake_writer = self._loop.create_future()
        try:
            await asyncio.wait_for(self._wake_writer, patience_s)
        except asyncio.TimeoutError:
            raise ConnectionAbortedError("the client does not read") from None
        finally:
            self._wake_writer = None

    # Ending

    def _refuse(self, error: ProtocolError) -> None:
        """Answer what is no request, and end the connection."""
        code = {413: "body_too_large"}.get(error.status, "invalid")
        problem = Problem(code, error.detail, status=error.status)
        self._say(problem)

    def _say(self, problem: Problem) -> None:
        assert self._transport is not None
        headers = ((b"content-type", b"application/problem+json"), (b"connection", b"close"))
        self._transport.write(whole_response(problem.status, headers, problem.document("", "")))
        self._linger()

    def _linger(self) -> None:
        """Close our side, and read on for a while: a reset would take the answer from the client."""
        if self._transport is None:
            return
        self._lingered = 0
        self._buffer.clear()
        self._pieces, self._pieces_size = [], 0
        if self._transport.can_write_eof() and not self._ended:
            self._transport.write_eof()
        self._throttle()
        if self._ended:
            self._close()
        else:
            self._arm(LINGER_S)

    def _hung_up(self) -> bool:
        """Whether the client closed both ways. On TCP that cannot be told, and is taken for granted."""
        assert self._transport is not None
        connection: socket.socket = self._transport.get_extra_info("socket")
        if connection.family != socket.AF_UNIX:
            return True
        poll = select.poll()
        poll.register(connection.fileno(), 0)  # POLLHUP and POLLERR are always told
        return bool(poll.poll(0))

    def _close(self) -> None:
        """Close when all is sent; who does not take it in time is cut off."""
        self._disarm()
        if self._transport is not None:
            self._transport.close()
            if self._transport.get_write_buffer_size():
                self._arm(WRITE_IDLE_S)

    def _abort(self) -> None:
        self._disarm()
        if self._transport is not None:
            self._transport.abort()

    def _arm(self, seconds: float) -> None:
        self._disarm()
        self._timer = self._loop.call_later(seconds, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        if self._transport is None:
            return
        if self._transport.is_closing() or self._lingered is not None:
            self._abort()
        elif self._buffer:
            self._say(Problem("request_timed_out", f"the head was not complete within {HEAD_S:.0f} s"))
        else:
            self._close()
