"""What a proxy's process holds: for 10,000 idle clients, and while it streams to peers slower than itself.

1 GiB each way to a peer that reads slower than the other side writes; 10,000 kept-alive connections that
have each made a request. Each proxy is started anew, and alone.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from benchmarks.router.load import cpu_s
from benchmarks.router.peers import Absent, Given, Proxy
from benchmarks.router.scene import PATH, SANDBOXES, SCENE, make_tokens

SIZE = 1 << 30
PIECE = 1 << 20
PAUSE_S = 0.002  # a reader's rest after each piece: about 400 MB/s at most
IDLE = 10_000
AT_ONCE = 32  # connections that open at a time
DEADLINE_S = 240.0  # for one proxy
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Start = Callable[[ExitStack, Given], Proxy]


def memory_mb(pid: int, name: str = "VmRSS") -> float:
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
                if b"chunked" in head.lower():  # a proxy that makes its own framing, with some bytes more
                    await read_chunks(reader)
                else:
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


async def read_chunks(reader: asyncio.StreamReader) -> None:
    read = 0
    while size := int(await reader.readline(), 16):
        await reader.readexactly(size + 2)
        if read // PIECE != (read := read + size) // PIECE:
            await asyncio.sleep(PAUSE_S)
    await reader.readline()


def head(first: str, tokens: dict[str, str], *more: str) -> bytes:
    held = SCENE[0]
    lines = (f"{first} HTTP/1.1", "Host: x", f"Authorization: Bearer {tokens[held.owner]}")
    return "\r\n".join((*lines, f"X-AgentCube-Session-Id: {held.id}", *more, "", "")).encode()


async def answered(reader: asyncio.StreamReader) -> None:
    said = await reader.readuntil(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200"), said
    assert await reader.readexactly(2) == b"ok"


async def stream(port: int, tokens: dict[str, str]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=4 * PIECE)
    writer.write(head(f"POST {PATH}/upload?", tokens, f"Content-Length: {SIZE}"))
    for _ in range(SIZE // PIECE):
        writer.write(bytes(PIECE))
        await writer.drain()
    await answered(reader)
    writer.write(head(f"GET {PATH}/download?", tokens))
    await reader.readuntil(b"\r\n\r\n")
    await slowly_read(reader, SIZE)
    writer.transport.abort()


async def idle(port: int, tokens: dict[str, str], kept: list[asyncio.StreamWriter]) -> None:
    request, left = head(f"GET {PATH}/run?", tokens), iter(range(IDLE))

    async def open_some() -> None:
        for _ in left:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
            kept.append(writer)
            writer.write(request)
            await answered(reader)

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(open_some())


async def row(load: str, proxy: Proxy, tokens: dict[str, str]) -> str:
    kept: list[asyncio.StreamWriter] = []
    started, cpu, began = memory_mb(proxy.pid), cpu_s(proxy.pid), time.perf_counter()
    try:
        async with asyncio.timeout(DEADLINE_S):
            await (idle(proxy.port, tokens, kept) if load == "idle" else stream(proxy.port, tokens))
        used, took = cpu_s(proxy.pid) - cpu, time.perf_counter() - began
        if load == "idle":
            now = memory_mb(proxy.pid)
            return f"{started:.0f} | {now:.0f} | {(now - started) * 1024 / IDLE:.1f}"
        return (
            f"{started:.0f} | {memory_mb(proxy.pid, 'VmHWM'):.0f} | {2 * SIZE / took / 1e6:.0f} | {used:.1f}"
        )
    except (TimeoutError, ExceptionGroup, AssertionError, OSError, asyncio.IncompleteReadError) as error:
        return f"{started:.0f} | failed: {error!r} |" + (" |" if load == "stream" else "")
    finally:
        for writer in kept:
            writer.transport.abort()


async def run(load: str, folder: Path, starts: dict[str, Start], cores: list[int]) -> None:
    public_key, tokens = make_tokens()
    server = await asyncio.start_server(sandbox, "127.0.0.1", 0, limit=4 * PIECE)
    inside = server.sockets[0].getsockname()[1]
    if load == "idle":
        print(f"**idle**: {IDLE:,} kept-alive connections, each after a request\n")
        print("| proxy | memory at start, MB | then, MB | KB a connection |\n|---|---|---|---|")
    else:
        print("**stream**: 1 GiB up and 1 GiB down, to readers slower than the writers\n")
        print("| proxy | memory at start, MB | peak, MB | MB/s | CPU, s |\n|---|---|---|---|---|", flush=True)
    for name, start in starts.items():
        (folder / name).mkdir()
        with ExitStack() as stack:
            os.sched_setaffinity(0, cores[-1:])
            try:
                proxy = start(stack, Given(folder / name, [inside] * SANDBOXES, tokens, public_key))
            except Absent as why:
                print(f"skipped {name}: {why}", flush=True)
                continue
            finally:
                os.sched_setaffinity(0, cores[:1])
            print(f"| {proxy.name} | {await row(load, proxy, tokens)} |", flush=True)
    server.close()
    os.sched_setaffinity(0, cores)
    print(flush=True)


def measure(load: str, folder: Path, starts: dict[str, Start], cores: list[int]) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(run(load, folder, starts, cores))
