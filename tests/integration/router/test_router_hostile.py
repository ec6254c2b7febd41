"""Sandboxes that mean harm, clients that vanish or crawl, tenants that want it all."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat
from typing import Any

import pytest

from tests.integration.router.world import (
    AGENT_PATH,
    FAST,
    OK,
    SID,
    Handler,
    Peer,
    eventually,
    replying,
    world,
)

pytestmark = pytest.mark.anyio

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
INTERIM = b"HTTP/1.1 102 Processing\r\n\r\n"


def saying(start: bytes, again: Iterator[bytes], ended: asyncio.Event) -> Handler:
    """Says `start`, then, a little at a time, what `again` gives, until nobody listens."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = Peer(reader, writer)
            await peer.request()
            await peer.write(start)
            for piece in again:
                if reader.at_eof() or writer.is_closing():
                    return
                await peer.write(piece)
                await asyncio.sleep(0.002)
            await reader.read()
        finally:
            ended.set()

    return handle


async def test_a_head_that_drips_for_ever_is_a_504_and_is_hung_up_on() -> None:
    ended = asyncio.Event()
    async with world(replace(FAST, first_byte_timeout_s=0.2)) as w:
        w.agent(await w.tcp(saying(b"HTTP/1.1 200 OK\r\nX: ", repeat(b"x"), ended)))
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (504, "first_byte_timed_out")
        async with asyncio.timeout(10):
            await ended.wait()


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (CHUNKED + b"1\r\na\r\n0\r\n", b"X: y\r\n" * 20),
        (CHUNKED + b"1\r\na\r\n0\r\nX: ", b"y" * 1000),
        (CHUNKED + b"1\r\na\r\n1;", b"x" * 1000),
    ],
    ids=["trailers", "one trailer", "a chunk's extension"],
)
async def test_what_follows_a_body_for_ever_breaks_the_answer_off(start: bytes, again: bytes) -> None:
    ended = asyncio.Event()
    async with world() as w:
        w.agent(await w.tcp(saying(start, repeat(again), ended)))
        peer = await w.connect()
        await peer.send()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()
        async with asyncio.timeout(10):
            await ended.wait()


async def test_interim_answers_for_ever_end_with_the_time_an_exchange_may_take() -> None:
    ended = asyncio.Event()
    async with world(replace(FAST, exchange_timeout_s=0.3)) as w:
        w.agent(await w.tcp(saying(b"", repeat(INTERIM), ended)))
        peer = await w.connect()
        await peer.send("", "Connection: close")
        while (head := await peer.head()).startswith(b"HTTP/1.1 102"):
            pass
        assert head.startswith(b"HTTP/1.1 504")
        assert b"exchange_timed_out" in await peer.to_end()
        async with asyncio.timeout(10):
            await ended.wait()


async def test_an_answer_that_takes_longer_than_an_exchange_may_is_broken_off() -> None:
    ended = asyncio.Event()
    async with world(replace(FAST, exchange_timeout_s=0.5)) as w:
        w.agent(await w.tcp(saying(CHUNKED, repeat(b"1\r\na\r\n"), ended)))
        peer = await w.connect()
        await peer.send()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()


async def test_an_exchange_that_ends_while_it_is_prepared_takes_no_later_one_along() -> None:
    """The next request on that connection may be somebody else's, behind a proxy."""
    seen: list[Any] = []
    async with world(replace(FAST, exchange_timeout_s=0.3)) as w:
        w.control.make = w.agent(await w.tcp(replying(OK, seen)))
        w.control.gate.clear()
        peer = await w.connect()
        await peer.send(f"GET {AGENT_PATH}/first", session=None)
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (504, "exchange_timed_out")
        assert answer["connection"] == "close"
        with contextlib.suppress(OSError):
            await peer.send(f"POST {AGENT_PATH}/second", token="bob", body=b"secret")
        w.control.gate.set()
        await eventually(lambda: w.router._engine.waiting == 0)
        await w.turns(3)
        assert seen == []


async def test_the_time_an_exchange_may_take_is_not_that_of_its_connection() -> None:
    async with world(replace(FAST, exchange_timeout_s=1.0)) as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        await peer.send()
        assert (await peer.answer()).status == 200
        engine = w.router._engine
        over = engine.now + 1.1
        await eventually(lambda: engine.now > over)
        await peer.send()
        assert (await peer.answer()).status == 200


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Le", INTERIM, INTERIM + b"HTTP/1.1 2"], ids=range(4)
)
async def test_a_sandbox_that_closes_before_its_head_is_whole_is_a_502(said: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await peer.write(said)

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", body=b"once")
        if said.startswith(INTERIM):
            assert (await peer.head()).startswith(b"HTTP/1.1 102")
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")
        assert answer["x-agentcube-session-id"] == SID


async def crawling(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Begins to answer an upload and says no more; answers everything else with a stream."""
    peer = Peer(reader, writer)
    head = await peer.head()
    if head.startswith(b"POST"):
        await peer.write(CHUNKED)
        while await reader.read(65536):
            pass
        return
    if b"pgrade: " in head:
        await peer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n"
        )
    else:
        await peer.write(CHUNKED)
    while not reader.at_eof() and not writer.is_closing():
        await peer.write(b"1\r\na\r\n")
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("what", ["upload after the answer", "stream", "upgrade"])
async def test_bytes_that_flow_are_activity(what: str) -> None:
    """Also when the request as such keeps nothing awake: its answer has begun."""
    async with world() as w:
        w.agent(await w.tcp(crawling))
        peer = await w.connect()
        if what == "stream":
            await peer.send()
        elif what == "upgrade":
            await peer.send("", "Connection: Upgrade", "Upgrade: echo/1")
        else:
            await peer.send(f"POST {AGENT_PATH}/", "Content-Length: 1000000")
        assert (await peer.head()).startswith(b"HTTP/1.1 ")
        for _ in range(3):
            w.sessions.touched.clear()
            async with asyncio.timeout(10):
                while SID not in w.sessions.touched:
                    if what.startswith("upload"):
                        await peer.write(b"x")
                    await asyncio.sleep(0.005)


async def test_a_client_whose_machine_is_gone_is_noticed_by_the_kernel() -> None:
    """TCP asks it now and then; nothing else can tell it from one that has nothing to say."""
    async with world() as w:
        await w.turns(1)  # it serves
        await eventually(lambda: w.router.connections == 0)
        await w.connect()
        await eventually(lambda: w.router.connections == 1)
        (client,) = w.router._engine.clients
        sock = client.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        asked_s, again_s, times = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert asked_s + again_s * times <= 150
        # It would also end a client that is there and only does not read: tcp(7) counts a closed window.
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


async def test_a_tenant_that_floods_starves_nobody() -> None:
    """One sends far more than it may on many connections, with heads and bodies that never end besides."""
    limits = {"requests_per_s": 0.001, "request_burst": 100, "in_flight_per_subject_max": 10}
    async with world(replace(FAST, **limits)) as w:  # type: ignore[arg-type]
        w.agent(await w.tcp(replying(OK)))
        flood = [await w.connect() for _ in range(20)]
        request = f"GET {AGENT_PATH}/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer mallory\r\n\r\n".encode()
        for peer in flood:
            await peer.write(request * 200)
        for _ in range(10):
            await (await w.connect()).write(b"GET / HTTP/1.1\r\nX: y\r\n")
        peer = await w.connect()
        for _ in range(50):
            await peer.send()
            assert (await peer.answer()).status == 200
        statuses = [await _statuses(peer, 200) for peer in flood]
        assert sum(s.count(429) for s in statuses) >= 20 * 200 - 100
        assert {429, 404} >= {status for some in statuses for status in some}


async def _statuses(peer: Peer, count: int) -> list[int]:
    return [(await peer.answer()).status for _ in range(count)]


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        f"POST {AGENT_PATH}/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\nContent-Length: 5\r\n",
        f"POST {AGENT_PATH}/ HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\nTransfer-Encoding: chunked\r\n",
        f"GET {AGENT_PATH}/ HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n",
        f"GET {AGENT_PATH}/ HTTP/1.1\r\nUpgrade: echo/1\r\n",
        f"HEAD {AGENT_PATH}/ HTTP/1.1\r\n",
    ],
    ids=["half a body", "no chunk", "1.0", "no option", "HEAD"],
)
async def test_a_101_out_of_turn_is_a_502_and_no_tunnel(head: str) -> None:
    """What the client sends next would be taken for another protocol's, or the next request smuggled."""
    got = bytearray()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCH + b"early")
        got.extend(await reader.read())

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.write(
            f"{head}Host: x\r\nAuthorization: Bearer alice\r\nX-AgentCube-Session-Id: {SID}\r\n\r\n".encode()
        )
        answer = await peer.answer(head=head.startswith("HEAD"))
        assert answer.status == 502
        assert head.startswith("HEAD") or answer.problem["code"] == "bad_answer"
        peer.writer.write(b"smuggled")
        peer.close()
        await eventually(lambda: w.router.in_flight == 0)
        assert b"smuggled" not in got
