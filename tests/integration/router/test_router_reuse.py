"""Connections to sandboxes that are used again, and what happens when the sandbox has closed one."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentcube.router import pool
from agentcube.router.dial import dial
from tests.integration.router.world import AGENT_PATH, FAST, OK, SID, Peer, eventually, world

pytestmark = pytest.mark.anyio


class Stale:
    """A server that answers once per connection and hangs up when asked again."""

    def __init__(self, *, says: bytes = b"", polite: bool = False) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.says = says
        self.polite = polite

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = Peer(reader, writer)
        for turn in range(2):
            head, _ = await peer.request()
            self.requests.append(head.method)
            if turn == 1:
                await peer.write(self.says)
                return
            await peer.write(OK)
            if self.polite:
                return


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PUT"])
async def test_a_stale_connection_costs_an_idempotent_request_nothing(method: str) -> None:
    async with world() as w:
        server = Stale()
        w.agent(await w.tcp(server))
        assert (await w.ask(f"POST {AGENT_PATH}/")).status == 200
        answer = await w.ask(f"{method} {AGENT_PATH}/")
        assert (answer.status, server.connections) == (200, 2)
        assert server.requests == [b"POST", method.encode(), method.encode()]


@pytest.mark.parametrize(
    ("first", "body", "says"),
    [
        (f"POST {AGENT_PATH}/", b"", b""),
        (f"PATCH {AGENT_PATH}/", b"", b""),
        (f"PUT {AGENT_PATH}/", b"with a body", b""),
        (f"GET {AGENT_PATH}/", b"", b"HTTP/1.1 2"),
        (f"GET {AGENT_PATH}/", b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
)
async def test_what_may_have_been_done_is_not_sent_again(first: str, body: bytes, says: bytes) -> None:
    async with world() as w:
        server = Stale(says=says)
        w.agent(await w.tcp(server))
        assert (await w.ask(f"POST {AGENT_PATH}/")).status == 200
        peer = await w.connect()
        await peer.send(first, body=body)
        if b"103" in says:
            await peer.head()
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")
        assert len(server.requests) == 2


async def test_a_sandbox_that_hangs_up_on_a_fresh_connection_is_suspected() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Peer(reader, writer).request()

    async with world() as w:
        w.agent(await w.tcp(handle))
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")
        await eventually(lambda: w.control.suspected == [SID])


async def test_a_connection_that_its_server_closed_while_idle_is_not_used() -> None:
    async with world() as w:
        server = Stale(polite=True)
        w.agent(await w.tcp(server))
        for _ in range(3):
            assert (await w.ask(f"POST {AGENT_PATH}/", body=b"x")).status == 200
            await eventually(lambda: w.router._engine.pools.idle == 0)
        assert server.connections == 3


async def test_idle_connections_are_closed_before_their_server_would() -> None:
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await peer.write(OK)
        assert await reader.read() == b""
        ended.set()

    async with world(replace(FAST, upstream_idle_ttl_s=0.05)) as w:
        w.agent(await w.tcp(handle))
        assert (await w.ask()).status == 200
        async with asyncio.timeout(5):
            await ended.wait()


async def test_the_connection_used_last_is_used_first() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        mine = count
        peer = Peer(reader, writer)
        while True:
            await peer.request()
            if gates:
                await gates[mine].wait()
            await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % mine)

    count = 0
    gates = {n: asyncio.Event() for n in (1, 2, 3)}
    async with world() as w:
        w.agent(await w.tcp(handle))
        peers = [await w.connect() for _ in range(3)]
        for n, peer in enumerate(peers, 1):
            await peer.send()
            await eventually(lambda n=n: count == n)
        for n in (2, 3, 1):
            gates[n].set()
            await peers[n - 1].answer()
        gates.clear()
        for _ in range(5):
            assert (await w.ask()).body == b"1"


async def test_what_an_unused_connection_says_in_the_pool_is_nobodys_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its client left while it was dialled; then its server speaks, as one does that waited too long."""
    asked = asyncio.Event()
    may_dial, may_speak = asyncio.Event(), asyncio.Event()
    connections: list[Peer] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        connections.append(peer)
        if len(connections) == 1:
            await may_speak.wait()
            await peer.write(OK.replace(b"ok", b"no"))
        else:
            await peer.request()
            await peer.write(OK)
        await reader.read()

    async def late(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        await may_dial.wait()
        return await dial(*args, **kwargs)

    monkeypatch.setattr(pool, "dial", late)
    async with world(replace(FAST, upstream_idle_ttl_s=60)) as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send()
        await asyncio.wait_for(asked.wait(), 5)
        peer.writer.transport.abort()
        await eventually(lambda: w.router.connections == 0)
        may_dial.set()
        await eventually(lambda: w.router._engine.pools.idle == 1)
        may_speak.set()
        await eventually(lambda: w.router._engine.pools.idle == 0)
        assert (await w.ask()).body == b"ok"
