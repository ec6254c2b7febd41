"""Raw bytes to a declared port of a session: any protocol, the client's credentials checked first."""

import asyncio
from dataclasses import replace

import pytest

from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Endpoint
from tests.integration.router.world import FAST, SID, Peer, World, eventually, world

pytestmark = pytest.mark.anyio

UPGRADE = ("Connection: Upgrade", "Upgrade: tcp")
TUNNEL = f"GET /v1/sessions/{SID}/tcp/8080"


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Greets first, echoes, and says goodbye at the client's end."""
    writer.write(b"hello\n")
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write(b"bye\n")
    await writer.drain()


async def opened(w: World, early: bytes = b"") -> Peer:
    peer = await w.connect()
    lines = [f"{TUNNEL} HTTP/1.1", "Host: x", "Authorization: Bearer alice", *UPGRADE, "", ""]
    await peer.write("\r\n".join(lines).encode() + early)
    head = await peer.head()
    assert head.startswith(b"HTTP/1.1 101 ")
    assert b"\r\nupgrade: tcp\r\n" in head.lower()
    assert SID.encode() in head
    return peer


async def test_a_tunnel_wakes_its_session_and_so_do_bytes_in_it() -> None:
    async with world() as w:
        session = w.agent(await w.tcp(echo))
        sleeping = w.add(replace(session, phase=Phase.PAUSED, revision=2))
        w.control.wakes_to = replace(session, revision=3)
        peer = await opened(w, early=b"early\n")
        assert [await peer.line(), await peer.line()] == [b"hello", b"early"]
        assert w.control.woken == [SID]
        w.control.wakes_to = replace(session, revision=5)
        w.sessions.change(replace(sleeping, revision=4))
        await w.turns()
        assert w.control.woken == [SID]
        await peer.write(b"late\n")
        await eventually(lambda: w.control.woken == [SID, SID])
        assert await peer.line() == b"late"


async def test_bytes_pass_both_ways_and_each_side_ends_for_itself() -> None:
    async with world() as w:
        w.agent(await w.tcp(echo))
        peer = await opened(w, early=b"early\n")
        assert [await peer.line(), await peer.line()] == [b"hello", b"early"]
        data = bytes(range(256)) * 4000
        writing = asyncio.create_task(peer.write(data))
        while len(peer.rest) < len(data):
            peer.rest += await peer.reader.read(65536)
        await writing
        assert peer.rest == data
        peer.rest = b""
        peer.writer.write_eof()
        assert await peer.to_end() == b"bye\n"
        await eventually(lambda: w.router.in_flight == 0 and w.router.connections == 0)


async def test_the_sandbox_gets_no_byte_of_ours() -> None:
    got = bytearray()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.extend(await reader.read(-1))
        writer.write(b"done")

    async with world() as w:
        w.agent(await w.tcp(listen))
        peer = await opened(w)
        await peer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        peer.writer.write_eof()
        assert await peer.to_end() == b"done"
        assert bytes(got) == b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def test_a_tunnel_keeps_its_session_awake_while_bytes_flow_and_ends_when_idle() -> None:
    async with world(replace(FAST, tunnel_idle_timeout_s=0.3, stream_idle_timeout_s=0.3)) as w:
        w.agent(await w.tcp(echo))
        peer = await opened(w)
        await peer.line()
        w.sessions.touched.clear()
        await peer.write(b"x\n")
        assert await peer.line() == b"x"
        await eventually(lambda: SID in w.sessions.touched)
        try:
            assert await peer.to_end() in (b"", b"bye\n")
        except ConnectionResetError:
            pass
        await eventually(lambda: w.router.in_flight == 0)


@pytest.mark.parametrize(
    ("first", "headers", "token", "status", "code"),
    [
        (TUNNEL, (), "alice", 426, "upgrade_required"),
        (TUNNEL, ("Connection: Upgrade", "Upgrade: websocket"), "alice", 426, "upgrade_required"),
        (TUNNEL, UPGRADE, "mallory", 404, "session_not_found"),
        (TUNNEL, UPGRADE, None, 401, "unauthenticated"),
        (TUNNEL.replace("8080", "22"), UPGRADE, "alice", 404, "not_found"),
        (TUNNEL.replace("8080", "99999"), UPGRADE, "alice", 404, "not_found"),
        (TUNNEL.replace(SID, "nobody"), UPGRADE, "alice", 404, "session_not_found"),
        (TUNNEL.replace("GET", "POST"), UPGRADE, "alice", 405, "method_not_allowed"),
    ],
)
async def test_a_tunnel_that_may_not_be_is_a_problem(
    first: str, headers: tuple[str, ...], token: str | None, status: int, code: str
) -> None:
    async with world() as w:
        w.agent(await w.tcp(echo))
        answer = await w.ask(first, *headers, token=token, session=None)
        assert (answer.status, answer.problem["code"]) == (status, code)
        if status == 426:
            assert answer["upgrade"] == "tcp"


async def test_a_port_on_which_nobody_listens_is_told() -> None:
    async with world() as w:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        w.control.suspects_to = w.agent(Endpoint(scheme="tcp", host="127.0.0.1", port=port))
        answer = await w.ask(TUNNEL, *UPGRADE, session=None)
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")
