"""The transport half of a client's connection: what is held, when we read, how we close.

Knows bytes and deadlines and nothing of HTTP; `client` adds that.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from typing import TYPE_CHECKING, cast

from agentcube.router.edge import is_within
from agentcube.router.turns import InTurns

if TYPE_CHECKING:
    from agentcube.router.engine import Engine

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER with time 0: close() sends RST instead of FIN


class Downstream(InTurns):
    """A connection that a client made."""

    __slots__ = (
        "_held",
        "_reading_full",
        "_reading_held",
        "_reading_paused",
        "deadline",
        "encrypted",
        "engine",
        "lingered",
        "peer",
        "scheme",
        "transport",
        "trusted",
        "writing_paused",
    )

    transport: asyncio.Transport

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.deadline = 0.0
        self.writing_paused = False
        self.lingered = 0
        self.peer = b"unknown"
        self.scheme = b"http"
        self.encrypted = False  # by us; `scheme` may be a proxy's word
        self.trusted = False  # what it says of the client is believed
        self._held = b""
        self._reading_paused = False
        self._reading_full = False  # we hold as much as we may
        self._reading_held = False  # the upstream does not keep up

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        name = transport.get_extra_info("peername")
        if isinstance(name, tuple):
            self.name_peer(str(name[0]))
        if transport.get_extra_info("sslcontext") is not None:
            self.encrypted, self.scheme = True, b"https"

    def name_peer(self, address: str) -> None:
        """The connection comes from `address`."""
        self.peer = address.encode("ascii")
        self.trusted = is_within(address, self.engine.trusted)

    @property
    def held(self) -> int:
        """How many bytes are held."""
        return len(self._held)

    def hold(self, data: bytes) -> None:
        """Keep bytes whose turn has not come; stop reading when it is enough, here or in all."""
        engine = self.engine
        self._held = self._held + data if self._held else data
        engine.held_bytes += len(data)
        if (
            len(self._held) > engine.settings.hold_bytes_max
            or engine.held_bytes > engine.settings.held_bytes_max
        ):
            self._reading_full = True
            self.update_reading()

    def take_held(self) -> bytes:
        """Everything held, which is held no longer."""
        data, self._held = self._held, b""
        if data:
            self.engine.held_bytes -= len(data)
            if self._reading_full:
                self._reading_full = False
                self.update_reading()
        return data

    def hold_reading(self, hold: bool) -> None:
        """The upstream's wish: stop or go on reading."""
        if self._reading_held != hold:
            self._reading_held = hold
            self.update_reading()

    @property
    def reading_held(self) -> bool:
        """Whether the upstream is what keeps us from reading."""
        return self._reading_held

    def update_reading(self) -> None:
        pause = self._reading_full or self._reading_held or self.behind
        if pause == self._reading_paused or self.transport.is_closing():
            return
        self._reading_paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def shut(self) -> None:
        """Send what was written, then say that no more comes; keep reading (RFC 9112 §9.6)."""
        self.take_held()
        self.hold_reading(False)
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()

    def is_reset(self) -> bool:
        """Whether the client has answered what we wrote with a reset."""
        sock = self.transport.get_extra_info("socket")
        if sock is None or self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(sock.fileno(), 0)  # POLLERR and POLLHUP are always told
        return bool(poll.poll(0))

    def reset(self) -> None:
        """Break the connection off so that the client cannot take what it got for a whole answer."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and not self.transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()
