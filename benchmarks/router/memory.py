"""`python -m benchmarks.router.memory`: what the Router's process holds while it streams, and for idle clients.

1 GiB each way to a peer that reads slower than the other side writes, then 10,000 kept-alive connections
that have each made a request.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.router.__main__ import python
from benchmarks.router.scene import PATH, SANDBOXES, SCENE, make_tokens

SIZE = 1 << 30
PIECE = 1 << 20
PAUSE_S = 0.002  # a reader's rest after each piece: about 400 MB/s at most
IDLE = 10_000
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def rss_mb(pid: int, name: str = "VmRSS") -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(name + ":")[2].split()[0]) / 1024


async def slowly_read(reader: asyncio.StreamReader, size: int) -> None:
    while size > 0:
        data = await reader.read(PIECE)
        assert data, "the stream ended early"
        size -= len(data)
        await asyncio.sleep(PAUSE_S)


async def sandbox(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            if b"/upload" in head:
                await slowly_read(reader, SIZE)
                writer.write(OK)
            elif b"/download" in head:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
                for _ in range(SIZE // PIECE):
                    writer.write(bytes(PIECE))
                    await writer.drain()
            else:
                writer.write(OK)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
        writer.close()


def head(first: str, tokens: dict[str, str], *more: str) -> bytes:
    held = SCENE[0]
    lines = (f"{first} HTTP/1.1", "Host: x", f"Authorization: Bearer {tokens[held.owner]}")
    return "\r\n".join((*lines, f"X-AgentCube-Session-Id: {held.id}", *more, "", "")).encode()


async def stream(port: int, tokens: dict[str, str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 * PIECE)
    writer.write(head(f"POST {PATH}/upload", tokens, f"Content-Length: {SIZE}"))
    for _ in range(SIZE // PIECE):
        writer.write(bytes(PIECE))
        await writer.drain()
    await reader.readuntil(b"\r\n\r\nok")
    writer.write(head(f"GET {PATH}/download", tokens))
    await reader.readuntil(b"\r\n\r\n")
    await slowly_read(reader, SIZE)
    writer.close()


async def main() -> None:
    soft_to_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_to_hard, soft_to_hard))
    public_key, tokens = make_tokens()
    server = await asyncio.start_server(sandbox, "127.0.0.1", 0, limit=4 * PIECE)
    inside = server.sockets[0].getsockname()[1]
    with ExitStack() as stack:
        router = python(stack, "subject")
        assert router.stdin is not None
        assert router.stdout is not None
        router.stdin.write(
            json.dumps({"sandboxes": [inside] * SANDBOXES, "public_key": public_key}).encode() + b"\n"
        )
        router.stdin.flush()
        port = int(router.stdout.readline())
        print("| state of the Router's process | memory, MB |\n|---|---|")
        print(f"| started | {rss_mb(router.pid):.0f} |")
        began = time.perf_counter()
        await stream(port, tokens)
        rate = 2 * SIZE / (time.perf_counter() - began) / 1e6
        print(f"| peak while 1 GiB passed each way, {rate:.0f} MB/s | {rss_mb(router.pid, 'VmHWM'):.0f} |")
        request, idle = head(f"GET {PATH}/", tokens), []
        for _ in range(IDLE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            writer.write(request)
            await reader.readuntil(b"\r\n\r\nok")
            idle.append(writer)
        print(f"| {IDLE:,} idle kept-alive connections | {rss_mb(router.pid):.0f} |")
        for writer in idle:
            writer.transport.abort()
    server.close()


if __name__ == "__main__":
    asyncio.run(main())
