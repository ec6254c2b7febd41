"""The Router with the h2 library before its engine: what decision 0024 weighed. A measurement, not a product.

Each stream gets a `Client` of the engine, as a connection would, with a transport that turns its HTTP/1.1
into frames; they are used again, newest first. It does what is needed to be fair and no more: no trailers,
no upgrades, no limits on streams beside h2's own.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, WindowUpdated

from agentcube import http1
from agentcube.router.client import Client
from agentcube.router.engine import Engine

_NOT_IN_2 = (b"connection", b"transfer-encoding", b"keep-alive")


class Front(asyncio.Protocol):
    """A connection that speaks HTTP/2 (prior knowledge, or chosen by ALPN)."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self.streams: dict[int, Stream] = {}
        self.idle: list[Stream] = []
        self.flushing = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.h2.initiate_connection()
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        for stream in [*self.streams.values(), *self.idle]:
            stream.client.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        for event in self.h2.receive_data(data):
            if isinstance(event, RequestReceived):
                stream = self.idle.pop() if self.idle else Stream(self)
                self.streams[event.stream_id] = stream
                stream.begin(event.stream_id, cast(Any, event.headers), whole=event.stream_ended is not None)
            elif isinstance(event, DataReceived):
                if event.stream_id in self.streams and event.data:
                    self.streams[event.stream_id].take(event.data)
                self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            elif isinstance(event, StreamEnded):
                if event.stream_id in self.streams:
                    self.streams[event.stream_id].take(b"")
            elif isinstance(event, StreamReset):
                if (gone := self.streams.pop(event.stream_id, None)) is not None:
                    gone.client.connection_lost(None)
            elif isinstance(event, WindowUpdated):
                for stream in list(self.streams.values()):
                    stream.send()
        self.flush()

    def later(self) -> None:
        """Send what h2 has to say, once for all that this turn of the loop brings."""
        if not self.flushing:
            self.flushing = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self.flushing = False
        if data := self.h2.data_to_send():
            self.transport.write(data)


class Stream(asyncio.Transport):
    """What a `Client` takes for its connection."""

    def __init__(self, front: Front) -> None:
        super().__init__()
        self.front = front
        self.id = 0
        self.method = b""
        self.chunked = False
        self.head = b""
        self.body: http1.Body | None = None
        self.unsent = b""
        self.client = Client(front.engine)
        self.client.connection_made(self)

    def begin(self, id: int, headers: list[tuple[bytes, bytes]], *, whole: bool) -> None:
        self.id = id
        first = {name: value for name, value in headers if name[:1] == b":"}
        self.method = first[b":method"]
        lines = [
            b"%b %b HTTP/1.1" % (self.method, first[b":path"]),
            b"host: " + first.get(b":authority", b""),
        ]
        lines += [b"%b: %b" % pair for pair in headers if pair[0][:1] != b":"]
        self.chunked = not whole and not any(name == b"content-length" for name, _ in headers)
        if self.chunked:
            lines.append(b"transfer-encoding: chunked")
        self.client.data_received(b"\r\n".join((*lines, b"", b"")))

    def take(self, data: bytes) -> None:
        if self.chunked:
            self.client.data_received(b"%x\r\n%b\r\n" % (len(data), data))
        elif data:
            self.client.data_received(data)

    # From the client.

    def write(self, data: Any) -> None:
        pieces: list[bytes] = []
        if self.body is None:
            data = self.head + data
            end = http1.response_end(data)
            if end < 0:
                self.head = data
                return
            self.head = b""
            answer = http1.parse_response(data[:end], self.method)
            headers = [(b":status", b"%d" % answer.status)]
            headers += [pair for pair in answer.headers if pair[0] not in _NOT_IN_2]
            self.front.h2.send_headers(self.id, headers)
            if answer.status < 200:
                return
            self.body = http1.track(answer.body)
            data = data[end:]
        self.body.feed(data, pieces)
        self.unsent += b"".join(pieces)
        self.send()

    def send(self) -> None:
        h2, body = self.front.h2, self.body
        if body is None:
            return
        ended = False
        while self.unsent and (
            room := min(h2.local_flow_control_window(self.id), h2.max_outbound_frame_size)
        ):
            part, self.unsent = self.unsent[:room], self.unsent[room:]
            ended = body.done and not self.unsent
            h2.send_data(self.id, part, end_stream=ended)
        if body.done and not self.unsent:
            if not ended:
                h2.end_stream(self.id)
            self.body = None
            del self.front.streams[self.id]
            self.front.idle.append(self)
        self.front.later()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 0) if name == "peername" else None

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def abort(self) -> None:
        if self.front.streams.pop(self.id, None) is not None:
            self.front.h2.reset_stream(self.id)
            self.front.later()

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def can_write_eof(self) -> bool:
        return False
