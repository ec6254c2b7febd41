"""From an endpoint to a connected socket."""

import asyncio
import socket
from typing import Any

import pytest

from agentcube.model.sandbox import Endpoint
from agentcube.router import dial as dialing
from agentcube.router.dial import dial

pytestmark = pytest.mark.anyio


async def test_small_writes_to_a_sandbox_are_sent_at_once() -> None:
    got: list[socket.socket | None] = []

    def factory(sock: socket.socket | None) -> asyncio.Protocol:
        got.append(sock)
        return asyncio.Protocol()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        await dial(Endpoint(scheme="tcp", host="127.0.0.1", port=port), factory, timeout_s=5)
        assert got[0] is not None
        assert got[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class Names:
    """A loop that knows these addresses for every name."""

    def __init__(self, *addresses: tuple[int, Any]) -> None:
        self._addresses = addresses

    async def getaddrinfo(self, *_: Any, **__: Any) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 0, "", address) for family, address in self._addresses]

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        await asyncio.get_running_loop().sock_connect(sock, address)


async def test_addresses_that_do_not_answer_or_cannot_be_used_are_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as gone:
        closed = gone.getsockname()
        gone.close()
        unknown = (45, ("127.0.0.1", 1))  # a family that no kernel has
        loop: Any = Names(unknown, (socket.AF_INET, closed), (socket.AF_INET, listener.getsockname()))
        with await dialing._connected(loop, "host", 1) as sock:
            assert sock.getpeername() == listener.getsockname()
        with pytest.raises(ConnectionRefusedError):
            await dialing._connected(Names(unknown, (socket.AF_INET, closed)), "host", 1)  # type: ignore[arg-type]
