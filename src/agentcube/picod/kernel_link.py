"""The channel to a Python kernel's host: PicoD's half of what `kernelhost/channel.py` describes.

Only packets that the kernel's own process has sent count: the system says whose they are. A packet of
a forked child is dropped; one of the kernel's that makes no sense is the end of that kernel.
"""

from __future__ import annotations

import array
import asyncio
import json
import socket
import struct
from typing import Any, Callable

from agentcube.picod import kernel_events
from agentcube.picod.kernel_events import Blobs, Nonsense

PACKET_BYTES = 32 * 1024
SMALL_BYTES = 256 * 1024
"""A message up to here is taken by every kernel at any time; larger ones one after the other."""

_BEGIN, _END = 1, 2
_SO_PASSCRED, _SCM_CREDENTIALS = 16, 2  # Python 3.9 has no names for them
_CREDENTIALS = struct.Struct("=iii")  # pid, uid, gid
_ROOM = socket.CMSG_SPACE(_CREDENTIALS.size)  # no more: descriptors that somebody sends find none

Handler = Callable[[dict[str, Any], Blobs], None]


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a channel, ours first."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, _SO_PASSCRED, 1)
    ours.setblocking(False)
    return ours, theirs


class Link:
    """One channel.

    `heard` gets whole messages; `broken` is told once why there will be no more, "" when the kernel
    has closed it, which it does when it ends. `larger` is asked whether a message may become larger
    than `SMALL_BYTES` now.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        ours: socket.socket,
        heard: Handler,
        broken: Callable[[str], None],
        larger: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._socket = ours
        self._heard = heard
        self._broken = broken
        self._larger = larger
        self.pid = 0  # the kernel's, once it is known: nobody else is listened to
        self._parts: list[bytes] | None = None
        self._size = 0
        self._waiting: bytes | None = None  # a packet that was read and may not be added yet
        self._unsent: list[bytes] = []  # newest first
        self.open = True

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    # Hearing

    def take(self) -> bool:
        """Read one packet. False when there is none now, or none ever."""
        if not self.open or self.pid == 0:
            return False
        packet, self._waiting = self._waiting, None
        if packet is None:
            packet = self._receive()
        if packet is None:
            return False
        if packet:
            self._add(packet)
        return self.open

    def _receive(self) -> bytes | None:
        """The next packet of the kernel's; b"" for one that does not count, None for none."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(PACKET_BYTES + 1, _ROOM)
        except BlockingIOError:
            return None
        except OSError:
            data, ancillary, flags = b"", [], 0
        senders = [
            _CREDENTIALS.unpack(content)[0] for _, kind, content in ancillary if kind == _SCM_CREDENTIALS
        ]
        if not data and not senders:
            self._end("")
            return None
        if senders != [self.pid] or not data:
            return b""
        if flags & socket.MSG_TRUNC:
            self._end("it wrote nonsense on its channel (a packet too long)")
            return None
        return data

    def _add(self, packet: bytes) -> None:
        if packet[0] & _BEGIN:
            self._parts, self._size = [], 0
        if self._parts is None:
            self._end("it wrote nonsense on its channel (a message without a beginning)")
            return
        size = self._size + len(packet) - 1
        if size > kernel_events.MESSAGE_BYTES_MAX:
            self._end("it wrote nonsense on its channel (a message too long)")
            return
        if size > SMALL_BYTES and not self._larger():
            self._waiting = packet
            return
        self._size = size
        self._parts.append(packet[1:])
        if packet[0] & _END:
            parts, self._parts = self._parts, None
            try:
                self._heard(*kernel_events.parse(b"".join(parts)))
            except Nonsense as exc:
                self._end(f"it wrote nonsense on its channel ({exc})")

    def _end(self, why: str) -> None:
        if self.open:
            self.open = False
            self._broken(why)

    # Saying

    @property
    def has_said_all(self) -> bool:
        """Whether the kernel has taken everything, or has it in its socket."""
        return not self._unsent

    def say(self, op: str, content: bytes = b"", **members: Any) -> None:
        """Send a message, as fast as the kernel takes it."""
        header = json.dumps({"op": op, "size": len(content), **members}).encode("ascii")
        message = b"".join((len(header).to_bytes(4, "big"), header, content))
        packets = []
        for start in range(0, len(message), PACKET_BYTES):
            last = start + PACKET_BYTES >= len(message)
            flags = (_BEGIN if start == 0 else 0) | (_END if last else 0)
            packets.append(bytes((flags,)) + message[start : start + PACKET_BYTES])
        was_idle = not self._unsent
        self._unsent[:0] = reversed(packets)
        if was_idle:
            self._send()

    def lend(self, fd: int) -> None:
        """Send a descriptor, before anything else. Raises OSError."""
        rights = array.array("i", [fd])
        self._socket.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def _send(self) -> None:
        try:
            while self._unsent and self.fileno() >= 0:
                self._socket.send(self._unsent[-1])
                self._unsent.pop()
        except BlockingIOError:
            self._loop.add_writer(self.fileno(), self._send)
            return
        except OSError:
            self._unsent.clear()  # it is gone: its end is told elsewhere
        if self.fileno() >= 0:
            self._loop.remove_writer(self.fileno())

    def close(self) -> None:
        """No more in either direction. Idempotent."""
        self.open = False
        self._parts, self._waiting = None, None
        self._unsent.clear()
        if self.fileno() >= 0:
            self._loop.remove_writer(self.fileno())
            self._socket.close()
