"""Stand-ins for sandboxes: every request gets the same small answer. Not what is measured."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop

from benchmarks.router.scene import ANSWER, SANDBOXES


class Sandbox(asyncio.Protocol):
    transport: asyncio.Transport
    data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        data = self.data + data
        whole = data.count(b"\r\n\r\n")  # requests have no bodies here
        self.data = data[data.rfind(b"\r\n\r\n") + 4 :] if whole else data
        if whole:
            self.transport.write(ANSWER * whole)


async def main() -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Sandbox, "127.0.0.1", 0) for _ in range(SANDBOXES)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
