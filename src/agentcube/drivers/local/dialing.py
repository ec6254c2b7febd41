"""Connections into a sandbox: to PicoD's socket, and to ports by way of the control socket."""

from __future__ import annotations

import asyncio
import socket

from agentcube.drivers.local.inside import kernel
from agentcube.drivers.local.steps import named
from agentcube.errors import Unreachable
from agentcube.wire import control

_DIAL_S = 5.0


async def connect(path: str) -> socket.socket:
    """A connected non-blocking socket to the unix socket at `path`. Raises Unreachable, CapacityExhausted."""
    with named("connect to the sandbox"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        async with asyncio.timeout(_DIAL_S):
            await asyncio.get_running_loop().sock_connect(sock, path)
    except (OSError, TimeoutError) as exc:
        sock.close()
        raise Unreachable("the sandbox does not accept connections") from exc
    except BaseException:
        sock.close()
        raise
    return sock


async def passed(path: str, port: int) -> socket.socket:
    """A connection to `port` inside, from the control socket at `path` (wire/control.py). Raises Unreachable."""
    with await connect(path) as sock:
        return await _ask(sock, port)


async def _ask(sock: socket.socket, port: int) -> socket.socket:
    try:
        async with asyncio.timeout(control.DEADLINE_S):
            await asyncio.get_running_loop().sock_sendall(sock, control.DIAL % port)
            await _readable(sock)
            answer, fds = kernel.receive(sock, 64, 1)
    except (OSError, TimeoutError) as exc:
        raise Unreachable(f"the sandbox does not answer for port {port}") from exc
    if answer[:1] != control.GRANTED or not fds:
        reason = answer[1:].decode("ascii", "replace").strip()
        raise Unreachable(f"nothing answers on port {port} in the sandbox ({reason or 'refused'})", port=port)
    inner = socket.socket(fileno=fds[0])
    inner.setblocking(False)
    return inner


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    loop.add_reader(sock.fileno(), wake)
    try:
        await waiter
    finally:
        loop.remove_reader(sock.fileno())
