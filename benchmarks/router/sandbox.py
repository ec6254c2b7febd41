"""Stand-ins for sandboxes: small and large answers, chunks, events, echoes. Not what is measured."""

from __future__ import annotations

import asyncio
import re
import sys
from base64 import b64encode
from hashlib import sha1
from typing import cast

import uvloop

from benchmarks.router.scene import BODY, CHUNKED_ANSWER, EVENT, EVENT_S, EVENTS, LARGE, SANDBOXES, answer

_ANSWER, _LARGE = answer(BODY), answer(LARGE, b"application/octet-stream")
_EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
_EVENT = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.I).search
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.I).search
_KEY = re.compile(rb"\r\nsec-websocket-key: *([^\r]+)", re.I).search
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3

streams: dict[Sandbox, int] = {}


class Sandbox(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.data = bytearray()
        self.asked = b""  # the last part of the path, of the request whose body is coming
        self.left = 0  # of that body; -1: chunks
        self.echoes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        streams.pop(self, None)

    def data_received(self, data: bytes) -> None:
        alone = not self.data and data.startswith(b"GET ") and data.find(b"\r\n\r\n") == len(data) - 4
        if alone and data.find(b"/run?", 0, 200) > 0:  # what most loads ask, quickly
            self.transport.write(_ANSWER)
            return
        self.data += data
        while self.data and (self.echo() if self.echoes else self.serve()):
            pass

    def serve(self) -> bool:
        data = self.data
        if not self.asked:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                return False
            head = bytes(data[:end])
            del data[:end]
            self.asked = head[: head.index(b"?")].rpartition(b"/")[2]
            length = _LENGTH(head)
            self.left = int(length[1]) if length else -1 if _CHUNKED(head) else 0
            if self.asked == b"echo":
                self.switch(head)
                return True
        if self.left < 0:
            end = data.find(b"0\r\n\r\n") + 5
            if end < 5:
                return False
            del data[:end]
        elif self.left:
            taken = min(self.left, len(data))
            self.left -= taken
            del data[:taken]
            if self.left:
                return False
        asked, self.asked = self.asked, b""
        if asked == b"events":
            self.transport.write(_EVENTS)
            streams[self] = EVENTS
        else:
            self.transport.write({b"run": _ANSWER, b"large": _LARGE, b"chunked": CHUNKED_ANSWER}[asked])
        return True

    def switch(self, head: bytes) -> None:
        key = _KEY(head)
        assert key is not None
        accept = b64encode(sha1(key[1] + _GUID).digest())
        self.transport.write(_SWITCH + b"Sec-WebSocket-Accept: %b\r\n\r\n" % accept)
        self.echoes = True

    def echo(self) -> bool:
        """One text frame of at most 125 bytes, masked, comes back unmasked; anything else ends the socket."""
        data = self.data
        if len(data) < 2:
            return False
        size = data[1] & 0x7F
        if data[0] != 0x81 or size > 125:
            self.transport.close()
            data.clear()
            return False
        if len(data) < 6 + size:
            return False
        mask = bytes(data[2:6]) * 32
        mixed = int.from_bytes(data[6 : 6 + size], "big") ^ int.from_bytes(mask[:size], "big")
        del data[: 6 + size]
        self.transport.write(b"\x81%c%b" % (size, mixed.to_bytes(size, "big")))
        return True


async def tell() -> None:
    """One event for every open stream, each EVENT_S."""
    while True:
        await asyncio.sleep(EVENT_S)
        for stream, left in list(streams.items()):
            if left:
                streams[stream] = left - 1
                stream.transport.write(_EVENT)
            else:
                del streams[stream]
                stream.transport.write(b"0\r\n\r\n")


async def main() -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Sandbox, "127.0.0.1", 0) for _ in range(SANDBOXES)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    telling = loop.create_task(tell())
    await loop.run_in_executor(None, sys.stdin.read)
    telling.cancel()


if __name__ == "__main__":
    uvloop.run(main())
