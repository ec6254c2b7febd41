"""From an `Endpoint`, which is data, to a connected transport."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from agentcube.errors import Unreachable
from agentcube.model.sandbox import Endpoint
from agentcube.router.problems import ConnectTimedOut
from agentcube.wire import control

P = TypeVar("P", bound=asyncio.Protocol)

_DESCRIPTOR_BYTES = 4  # a C int
_REPLY_BYTES = 64  # `-`, an errno name and a newline are far shorter


async def dial(endpoint: Endpoint, factory: Callable[[socket.socket | None], P], *, timeout_s: float) -> P:
    """A new protocol of `factory`, which gets the socket if it is one of TCP, connected to `endpoint`.

    The loop's transport owns the socket: it is for options, while the transport is open. What
    `get_extra_info` of uvloop gives makes a socket for each option, with three system calls.

    Raises:
        Unreachable: refused, or the sandbox is not there.
        ConnectTimedOut: no answer within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await _connect(endpoint, factory)
    except TimeoutError:
        raise ConnectTimedOut("the sandbox did not accept a connection in time") from None
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        raise Unreachable("the sandbox refused the connection", reason=name) from None


async def _connect(endpoint: Endpoint, factory: Callable[[socket.socket | None], P]) -> P:
    loop = asyncio.get_running_loop()
    match endpoint.scheme:
        case "unix":
            _, protocol = await loop.create_unix_connection(lambda: factory(None), endpoint.path)
            return protocol
        case "tcp":
            sock = await _connected(loop, endpoint.host, endpoint.port)
        case "passed":
            sock = await _receive(loop, endpoint)
        case _:
            raise OSError(errno.EPROTONOSUPPORT, "unknown scheme of endpoint")
    try:
        _, protocol = await loop.create_connection(lambda: factory(sock), sock=sock)
    except BaseException:
        with suppress(OSError):  # uvloop may have closed it under the object
            sock.close()
        raise
    return protocol


async def _connected(loop: asyncio.AbstractEventLoop, host: str, port: int) -> socket.socket:
    """Connected to the first address of `host` that answers."""
    failed = OSError(errno.EADDRNOTAVAIL, "the host has no address")
    for family, kind, protocol, _, address in await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            sock = socket.socket(
                family, kind, protocol
            )  # asyncio turns Nagle's algorithm off by its protocol
        except OSError as error:  # a family that this kernel lacks
            failed = error
            continue
        try:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failed


async def _receive(loop: asyncio.AbstractEventLoop, endpoint: Endpoint) -> socket.socket:
    """The connected socket that the sandbox's control socket hands out (`agentcube.wire.control`)."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asker:
        asker.setblocking(False)
        await loop.sock_connect(asker, endpoint.path)
        await loop.sock_sendall(asker, control.DIAL % endpoint.port)
        await _readable(loop, asker)
        # Not socket.recv_fds: in CPython 3.11 it ignores its flags, and the descriptor must close on exec.
        room = socket.CMSG_LEN(_DESCRIPTOR_BYTES)  # one: whatever else is attached, the kernel drops
        reply, attached, _, _ = asker.recvmsg(_REPLY_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    descriptors = [
        int.from_bytes(data[:_DESCRIPTOR_BYTES], sys.byteorder)
        for level, kind, data in attached
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS) and len(data) >= _DESCRIPTOR_BYTES
    ]
    if not descriptors:
        name = reply[1:].strip().decode("ascii", "replace") if reply[:1] == control.REFUSED else "EPROTO"
        raise OSError(getattr(errno, name, errno.ECONNREFUSED), "the sandbox did not pass a socket")
    return _checked(descriptors[0], reply)


def _checked(descriptor: int, reply: bytes) -> socket.socket:
    try:
        passed = socket.socket(fileno=descriptor)
    except OSError:
        os.close(descriptor)
        raise
    internet = passed.family in (socket.AF_INET, socket.AF_INET6)
    if reply != control.GRANTED or not internet or passed.type != socket.SOCK_STREAM:
        passed.close()
        raise OSError(errno.EPROTO, "the sandbox passed something that is not a TCP socket")
    passed.setblocking(False)
    return passed


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, wake)
    try:
        await ready
    finally:
        loop.remove_reader(sock)
