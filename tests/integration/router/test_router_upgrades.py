"""After a 101 that both sides agreed on, bytes pass unread."""

import asyncio
import socket
from dataclasses import replace
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from websockets.exceptions import ConnectionClosed

from agentcube import http1
from agentcube.model.sandbox import Endpoint
from tests.integration.router.world import AGENT_PATH, FAST, OK, SID, Peer, eventually, replying, world

pytestmark = pytest.mark.anyio

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n"
HEADERS = {"Authorization": "Bearer alice", "X-AgentCube-Session-Id": SID}


async def test_websockets_pass_messages_and_close_codes_both_ways() -> None:
    closed: list[int] = []

    async def serve(socket: websockets.asyncio.server.ServerConnection) -> None:
        assert socket.request is not None
        assert socket.request.path == "/ws?x=1"
        try:
            async for message in socket:
                if message == "bye":
                    await socket.close(4321, "as you say")
                else:
                    await socket.send(message)
        finally:
            closed.append(socket.close_code or 0)

    async with world() as w, websockets.asyncio.server.serve(serve, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        w.agent(Endpoint(scheme="tcp", host="127.0.0.1", port=port))
        url = f"ws://127.0.0.1:{w.port}{AGENT_PATH}/ws?x=1"
        async with websockets.asyncio.client.connect(
            url, additional_headers=HEADERS, max_size=None
        ) as client:
            for message in ("hello", b"\x00\xff", "x" * 3_000_000):
                await client.send(message)
                assert await client.recv() == message
            assert client.response is not None
            assert client.response.headers["x-agentcube-session-id"] == SID
            w.sessions.touched.clear()
            await client.send("still here")
            await client.recv()
            await eventually(lambda: SID in w.sessions.touched)
            await client.send("bye")
            with pytest.raises(ConnectionClosed):
                await client.recv()
            assert (client.close_code, client.close_reason) == (4321, "as you say")
        async with websockets.asyncio.client.connect(url, additional_headers=HEADERS) as client:
            await client.close(4001)
        await eventually(lambda: closed == [4321, 4001] and w.router.in_flight == 0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Agrees to `echo/1` and says `hi` with it; then echoes."""
    peer = Peer(reader, writer)
    head = http1.parse_request(await peer.head())
    assert head.upgrade == b"echo/1"
    await peer.write(SWITCH + b"hi" + peer.rest)
    while data := await reader.read(65536):
        await peer.write(data)


async def test_any_protocol_passes_and_early_bytes_are_kept() -> None:
    async with world() as w:
        w.agent(await w.tcp(echo))
        peer = await w.connect()
        await peer.send("", "Connection: keep-alive, Upgrade", "Upgrade: echo/1")
        await peer.write(b"early")
        head = http1.parse_response(await peer.head(), b"GET")
        assert (head.status, head.upgrade, head.get(b"x-agentcube-session-id")) == (
            101,
            b"echo/1",
            SID.encode(),
        )
        got = peer.rest
        while len(got) < 7:
            got += await peer.reader.read(100)
        assert got == b"hiearly"
        await peer.write(b"\x00\r\n\r\nGET / HTTP/1.1")
        peer.writer.write_eof()
        peer.rest = b""
        assert await peer.to_end() == b"\x00\r\n\r\nGET / HTTP/1.1"
        await eventually(lambda: w.router.in_flight == 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: other\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo/1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
    ],
)
async def test_a_101_that_was_not_agreed_on_is_refused(answer: bytes) -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(answer)))
        got = await w.ask("", "Connection: Upgrade", "Upgrade: echo/1")
        assert (got.status, got.problem["code"]) == (502, "bad_answer")


async def test_a_refused_upgrade_is_an_answer_like_any_other() -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        for _ in range(2):
            await peer.send("", "Connection: Upgrade", "Upgrade: echo/1")
            assert (await peer.answer()).body == b"ok"


async def test_an_offer_with_a_body_is_not_passed_on() -> None:
    """Servers disagree where the new protocol begins: httptools' take the body for its first bytes."""
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        answer = await w.ask(f"POST {AGENT_PATH}/", "Connection: Upgrade", "Upgrade: websocket", body=b"abc")
        assert answer.status == 200
        head, body = seen[0]
        assert body == b"abc"
        assert not {b"upgrade", b"connection"} & set(dict(head.headers))


async def test_an_offer_of_h2c_is_not_passed_on() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        await w.ask("", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
        assert not {b"upgrade", b"http2-settings", b"connection"} & {name for name, _ in seen[0][0].headers}


async def test_an_idle_tunnel_is_closed() -> None:
    async with world(replace(FAST, tunnel_idle_timeout_s=0.1)) as w:
        w.agent(await w.tcp(echo))
        peer = await w.connect()
        await peer.send("", "Connection: Upgrade", "Upgrade: echo/1")
        await peer.head()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()
        await eventually(lambda: w.router.in_flight == 0)


async def test_a_tunnel_that_the_sandbox_breaks_ends() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.head()
        await peer.write(SWITCH + b"bye")

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send("", "Connection: Upgrade", "Upgrade: echo/1")
        await peer.head()
        assert await peer.to_end() == b"bye"
        peer.close()
        await eventually(lambda: w.router.in_flight == 0)


async def test_a_slow_end_of_a_tunnel_stops_the_other() -> None:
    written = 0
    pouring: list[asyncio.Task[None]] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.head()
        await peer.write(SWITCH)
        pouring.append(asyncio.ensure_future(pour(peer)))
        await pouring[0]

    async def pour(peer: Peer) -> None:
        nonlocal written
        while written < 100 << 20:
            await peer.write(b"x" * (1 << 18))
            written += 1 << 18

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        peer.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await peer.send("", "Connection: Upgrade", "Upgrade: echo/1")
        await peer.head()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        stuck_at = -1
        while stuck_at != written:
            stuck_at = written
            await w.turns()
        assert written < 64 << 20
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        got = len(peer.rest)
        while got < 100 << 20:
            got += len(await peer.reader.read(1 << 20))
        await pouring[0]
