"""The side towards a sandbox (or the manager): one connection, used by one client at a time."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, cast

from agentcube import http1
from agentcube.router.heads import Reader
from agentcube.router.turns import TURN_LINES, InTurns

if TYPE_CHECKING:
    from agentcube.router.answering import Answering
    from agentcube.router.heads import Answer
    from agentcube.router.pool import Pool


_HEAD_BYTES_KEPT = 1024
_SMALL_READ = 16 * 1024  # below it the sender may be waiting for us rather than we for it
_INTERIM_BYTES = 4096  # of answers before the answer, looked at before others have their turn
_FLUSH_S = 10.0  # for the last bytes of a tunnel; a sandbox that does not read may not hold us longer


class Upstream(InTurns):
    """A connection to an endpoint, and the answer that is arriving on it.

    `client` is None exactly while the connection idles or is over. `reused` and `heard` decide
    whether a request that got no answer may be sent again.
    """

    __slots__ = (
        "_body",
        "_head",
        "_keep",
        "_last_answer",
        "_last_head",
        "_paused",
        "_reader",
        "_tcp",
        "_tunnel",
        "client",
        "closing",
        "fresh",
        "heard",
        "idle_since",
        "pool",
        "reused",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, pool: Pool, reader: Reader, tcp: socket.socket | None) -> None:
        super().__init__()
        self.pool = pool
        self.client: Answering | None = None
        self.reused = False  # it has carried a whole exchange before
        self.heard = False  # a byte of the answer has come
        self.closing = False
        self.idle_since = 0.0
        self._reader = reader
        self._head = b""  # an incomplete head
        self._body: http1.Body | None = None  # of the answer whose head has passed
        self.fresh = True  # nobody has had it yet, and it has not idled
        self._keep = False
        self._last_head = b""  # the last answer's, and what it meant
        self._last_answer: Answer | None = None
        self._tcp = tcp
        self._tunnel = False
        self._paused = False

    # From the client's side.

    def begin(self, client: Answering) -> None:
        """Serve `client` from now on; it writes its request next."""
        self.client = client
        self.fresh = False
        if self._later:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self.heard = False
        self._body = None

    def begin_tunnel(self, client: Answering) -> None:
        """Serve `client` from now on, unread from the first byte."""
        self.begin(client)
        self._tunnel = True

    def write(self, data: bytes) -> None:
        """Send bytes of the request or tunnel."""
        self.transport.write(data)

    def pause(self) -> None:
        """Stop reading: the client does not keep up."""
        if not self._paused and not self.closing:
            self._paused = True
            if not self._later:
                self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and not self.closing:
            self._paused = False
            if not self._later:
                self.transport.resume_reading()

    def update_reading(self) -> None:
        if self._paused or self.closing or self.transport.is_closing():
            return
        if self._later:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def end(self) -> None:
        """The client is through its side of a tunnel."""
        if not self.closing and self.transport.can_write_eof():
            self.transport.write_eof()

    def close(self) -> None:
        """Close after what was written has been sent."""
        self.closing = True
        self.transport.close()
        if self.transport.get_write_buffer_size():
            asyncio.get_running_loop().call_later(_FLUSH_S, self.transport.abort)

    def abandon(self) -> None:
        """Drop the connection at once; its client hears no more of it."""
        self.client = None
        self.closing = True
        self.transport.abort()

    # From the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        client = self.client
        if client is None:
            self._on_unasked(data)
        elif self._tunnel:
            client.relay(data)
        elif self._body is not None:
            self._on_body(client, self._body, data)
        else:
            self.heard = True
            self._on_head(client, data)

    def _on_unasked(self, data: bytes) -> None:
        if self.fresh:  # a server that speaks first, before we could say whose the connection is
            self._later += data
            self.update_reading()
        else:
            self.abandon()  # whatever it is, it would be taken for the next request's answer

    def _on_head(self, client: Answering, data: bytes) -> None:
        searched = len(self._head)
        if searched:
            data, self._head = self._head + data, b""
        try:
            while True:
                end = http1.response_end(data, searched)
                if end < 0:
                    self._head = data
                    return
                searched = 0
                answer = self._read(data[:end], client)
                data = data[end:]
                if answer.status == 101:
                    self._on_switch(client, answer, data)
                    return
                if answer.status >= 200:
                    self._on_answer(client, answer, data)
                    return
                client.on_interim(answer)
                if len(data) > _INTERIM_BYTES:
                    self.put_off(data[_INTERIM_BYTES:])
                    data = data[:_INTERIM_BYTES]
        except http1.ProtocolError as error:
            client.on_bad_answer(error)

    def _read(self, head: bytes, client: Answering) -> Answer:
        """What `head` means. Servers say the same for a while: a date has seconds, a body few lengths."""
        request = client.request
        if head == self._last_head and request.method != b"HEAD" and request.minor == 1:
            assert self._last_answer is not None
            return self._last_answer
        answer = self._reader.answer(head, request, own_session=client.entry is not None)
        if request.method != b"HEAD" and request.minor == 1 and len(head) <= _HEAD_BYTES_KEPT:
            self._last_head, self._last_answer = head, answer
        return answer

    def _on_answer(self, client: Answering, answer: Answer, rest: bytes) -> None:
        self._keep = answer.keep_alive
        length = answer.body
        if 0 <= length <= len(rest):
            client.on_answer(answer, rest[:length] if length else b"")
            self._finish(client, clean=length == len(rest))
            return
        body = http1.track(length, status=502, lines_max=TURN_LINES)
        taken = body.feed(rest)
        client.on_answer(answer, rest[:taken])
        if body.done:
            self._finish(client, clean=taken == len(rest))
            return
        self._body = body
        self._acknowledge()
        if taken < len(rest):
            self.put_off(rest[taken:])

    def _on_body(self, client: Answering, body: http1.Body, data: bytes) -> None:
        try:
            taken = body.feed(data)
        except http1.ProtocolError as error:
            client.on_bad_answer(error)
            return
        client.relay(data if taken == len(data) else data[:taken])
        if body.done:
            self._finish(client, clean=taken == len(data))
        elif taken < len(data):
            self.put_off(data[taken:])
        elif taken < _SMALL_READ:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Acknowledge what came at once (tcp(7), TCP_QUICKACK), for more is to come.

        A server that leaves Nagle's algorithm on and writes head and body apart, as Python's
        http.server does, sends the second part only then: 40 ms later if the kernel is left alone.
        """
        if self._tcp is not None and not self.transport.is_closing():
            self._tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def _on_switch(self, client: Answering, answer: Answer, rest: bytes) -> None:
        asked = client.request.upgrade
        if asked is None or client.entry is None or answer.upgrade is None or not client.whole:
            raise http1.ProtocolError(502, "the sandbox switched protocols unasked")
        if not http1.options(answer.upgrade) <= http1.options(asked):
            raise http1.ProtocolError(502, "the sandbox switched to a protocol that was not offered")
        self._tunnel = True
        client.on_switch(answer, rest)

    def _finish(self, client: Answering, *, clean: bool) -> None:
        """The answer is whole. `clean`: nothing came behind it."""
        self.client = None
        self._body = None
        if clean and self._keep and client.whole and not self.closing and not self._later:
            if self._paused:
                self.resume()
            self.reused = True
            client.give_back(self)
        else:
            self.abandon()  # nothing that is still to be sent could matter
        client.on_answer_end()

    def pause_writing(self) -> None:
        if self.client is not None:
            self.client.hold_reading(True)

    def resume_writing(self) -> None:
        if self.client is not None:
            self.client.hold_reading(False)

    def eof_received(self) -> bool:
        if self._tunnel and self.client is not None:
            self.client.on_tunnel_eof()
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closing = True
        self._later = b""
        client, self.client = self.client, None
        if client is None:
            self.pool.drop(self)
        elif self._body is not None and isinstance(self._body, http1.CloseBody) and exc is None:
            client.on_answer_end()
        else:
            client.on_upstream_lost(self)
