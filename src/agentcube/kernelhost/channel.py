"""The socket between a kernel's host and PicoD, and the messages on it. The host's half.

SEQPACKET, so that a packet is sent whole or not at all: a cell that is interrupted while it displays
something leaves no half of a packet behind. The first byte of a packet says whether a message begins
(bit 0) and ends (bit 1) with it; a message that begins anew replaces one that was broken off.

A message is the length of its header (four bytes, network order), the header (a JSON object, small)
and then the texts and bytes whose names and lengths the header lists under `blobs`:

    PicoD → host   init + {env, working_dir, rlimits} as JSON           once; `env` null: it is there already
    host → PicoD   ready {implementation, count} | failed {step, errno} the answer to it
    PicoD → host   execute {n, silent, store_history} + code           only when the last one has ended
    host → PicoD   begin {count}                                       from now on SIGINT interrupts the cell
    host → PicoD   event {n, event, …} + blobs                         PicoD answers `ack {n}`
    host → PicoD   end {ok, interrupted, count}

PicoD's headers say the `size` of what follows them. A packet can be lost: between reading it and looking at
it a signal handler of the user's may raise. So what is not whole is dropped, and PicoD says `execute`
again, with the same number, while it hears no `begin`.

The host waits for the `ack` of what its main thread displays: so what the cell writes to stdout
afterwards comes after it, and a client that does not read holds the cell up instead of filling memory.
"""

from __future__ import annotations

import builtins
import errno
import socket
import threading
from collections.abc import Sequence
from json import dumps, loads
from typing import Any, NoReturn

__builtins__ = dict(vars(builtins))  # type: ignore[assignment]  # ours: the user may redefine what is common

PACKET_BYTES = 32 * 1024  # of content; a few of them fit into the buffer of a socket
HEADER_BYTES_MAX = 64 * 1024
MESSAGE_BYTES_MAX = 24 << 20  # an event of 16 MiB, or 8 MiB of code that is no ASCII
_BEGIN, _END = 1, 2
_CLOSED = (
    errno.EBADF,
    errno.EPIPE,
    errno.ECONNRESET,
    errno.ENOTCONN,
    errno.ENOTSOCK,
    errno.EINVAL,
    errno.EMSGSIZE,
)

Blob = tuple[str, str, bytes]  # name, kind ("text", "base64" or "json"), content


class ChannelClosed(Exception):
    """PicoD is gone, or the user closed the channel: there is nobody to run cells for."""


class Channel:
    """Sends and receives messages. Only the thread that made it receives; any thread may send."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(True)
        self._lock = threading.Lock()
        self._parts: list[bytes] | None = None
        self._main = threading.get_ident()
        self._sent = self._acknowledged = 0
        self.open = True

    def fileno(self) -> int:
        """The descriptor, to wait for."""
        return self._socket.fileno()

    def abandon(self) -> None:
        """In a forked child: this is its parent's. Idempotent."""
        if self.open:
            self.open = False
            self._socket.close()

    def send(self, op: str, blobs: Sequence[Blob] = (), **members: Any) -> None:
        """Send one message whole; broken off by an exception, it counts as not sent. ChannelClosed."""
        listed = [(name, kind, len(content)) for name, kind, content in blobs]
        header = dumps({"op": op, "blobs": listed, **members}).encode("ascii")
        content = b"".join((len(header).to_bytes(4, "big"), header, *(blob[2] for blob in blobs)))
        with self._lock:
            flag = _BEGIN
            for start in range(0, len(content), PACKET_BYTES):
                part = content[start : start + PACKET_BYTES]
                if start + PACKET_BYTES >= len(content):
                    flag |= _END
                self._send_packet(bytes((flag,)) + part)
                flag = 0

    def _send_packet(self, packet: bytes) -> None:
        while True:
            try:
                self._socket.send(packet)
                return
            except BlockingIOError:  # somebody made the descriptor non-blocking
                self._socket.setblocking(True)
            except OSError as exc:
                _reraise(exc)

    def publish(self, members: dict[str, Any], blobs: Sequence[Blob]) -> None:
        """Send an event. In the main thread: return when PicoD has it. ChannelClosed."""
        self._sent += 1  # of two threads at once both may get the same number, which says the same
        number = self._sent
        self.send("event", blobs, n=number, **members)
        while threading.get_ident() == self._main and self._acknowledged < number:
            self._take()

    def receive(self) -> tuple[dict[str, Any], bytes]:
        """The next message that is no acknowledgement: its header and what follows it. ChannelClosed."""
        while True:
            header, content = self._take()
            if header["op"] != "ack":
                return header, content

    def _take(self) -> tuple[dict[str, Any], bytes]:
        """The next message; an acknowledgement is noted."""
        while True:
            packet = self._receive_packet()
            if packet[0] & _BEGIN:
                self._parts = []
            if self._parts is None:
                continue
            self._parts.append(packet[1:])
            if packet[0] & _END:
                content, self._parts = b"".join(self._parts), None
                start = 4 + int.from_bytes(content[:4], "big")
                header: dict[str, Any] = loads(content[4:start])
                if len(content) == start + header["size"]:
                    break
        if header["op"] == "ack":
            self._acknowledged = max(self._acknowledged, header["n"])
        return header, content[start:]

    def _receive_packet(self) -> bytes:
        while True:
            try:
                packet = self._socket.recv(PACKET_BYTES + 1)
            except BlockingIOError:  # somebody made the descriptor non-blocking
                self._socket.setblocking(True)
                continue
            except OSError as exc:
                _reraise(exc)
            if not packet:
                raise ChannelClosed("PicoD closed it")
            return packet


def _reraise(error: OSError) -> NoReturn:
    """As ChannelClosed, if it is the system's; a signal handler of the user's may raise an OSError, too."""
    if error.errno in _CLOSED:
        raise ChannelClosed(str(error)) from None
    raise error
