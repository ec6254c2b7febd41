"""Deadlines and limits: each has its own code, none hangs, none holds memory."""

import asyncio
import socket
from dataclasses import replace

import pytest

from agentcube.model.sandbox import Endpoint
from tests.integration.router.world import (
    AGENT_PATH,
    FAST,
    OK,
    SID,
    Peer,
    eventually,
    replying,
    world,
)

pytestmark = pytest.mark.anyio


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads for ever and says nothing."""
    while await reader.read(65536):
        pass


async def test_a_head_that_does_not_end_is_a_408() -> None:
    async with world(replace(FAST, head_timeout_s=0.1)) as w:
        peer = await w.connect()
        await peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        for _ in range(3):  # a trickle is no reason to wait longer
            await w.turns(1)
            await peer.write(b"A: b\r\n")
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (408, "head_timed_out")
        assert await peer.to_end() == b""


async def test_a_connection_on_which_nothing_comes_is_closed_without_a_word() -> None:
    async with world(replace(FAST, head_timeout_s=0.05)) as w:
        peer = await w.connect()
        assert await peer.to_end() == b""


async def test_a_kept_connection_is_closed_after_its_time() -> None:
    async with world(replace(FAST, keep_alive_timeout_s=0.1)) as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        await peer.send()
        assert (await peer.answer()).status == 200
        assert await peer.to_end() == b""


async def test_a_body_that_stops_is_a_408() -> None:
    async with world(replace(FAST, body_idle_timeout_s=0.1)) as w:
        w.agent(await w.tcp(silent))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Content-Length: 10")
        await peer.write(b"abc")
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (408, "body_timed_out")


async def test_a_sandbox_that_stops_reading_is_a_504() -> None:
    async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await over.wait()

    over = asyncio.Event()
    async with world(replace(FAST, body_idle_timeout_s=0.2)) as w:
        w.agent(await w.tcp(deaf))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Content-Length: 100000000")
        sending = asyncio.ensure_future(peer.write(b"x" * 50_000_000))
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (504, "upload_timed_out")
        peer.close()
        await asyncio.gather(sending, return_exceptions=True)
        over.set()


async def test_a_sandbox_that_does_not_accept_is_a_504() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        fillers = []
        for _ in range(4):  # the queue of connections that nobody accepts
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(address)
            fillers.append(filler)
        async with world(replace(FAST, connect_timeout_s=0.1)) as w:
            w.agent(Endpoint(scheme="tcp", host="127.0.0.1", port=address[1]))
            answer = await w.ask()
            assert (answer.status, answer.problem["code"]) == (504, "connect_timed_out")
            assert w.control.suspected == [SID]
        for filler in fillers:
            filler.close()


async def test_a_sandbox_that_says_nothing_is_a_504() -> None:
    async with world(replace(FAST, first_byte_timeout_s=0.1)) as w:
        w.agent(await w.tcp(silent))
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (504, "first_byte_timed_out")
        assert answer["x-agentcube-session-id"] == SID


async def test_an_answer_that_stops_is_broken_off() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Peer(reader, writer).request()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
        await silent(reader, writer)

    async with world(replace(FAST, stream_idle_timeout_s=0.1)) as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()


async def test_only_so_many_requests_of_one_session_are_in_flight() -> None:
    async with world(replace(FAST, in_flight_per_session_max=2, half_close_probe_s=0.05)) as w:
        w.agent(await w.tcp(silent))
        peers = [await w.connect() for _ in range(2)]
        for peer in peers:
            await peer.send()
        await eventually(lambda: w.router.in_flight == 2)
        answer = await w.ask()
        assert (answer.status, answer.problem["code"], answer["retry-after"]) == (429, "limit_exceeded", "1")
        assert answer["x-agentcube-session-id"] == SID
        for peer in peers:
            peer.writer.transport.abort()  # type: ignore[attr-defined]
        await eventually(lambda: w.router.in_flight == 0)
        w.agent(await w.tcp(replying(OK)), revision=2)
        assert (await w.ask()).status == 200


async def test_one_subject_cannot_take_the_places_of_others() -> None:
    async with world(replace(FAST, in_flight_per_subject_max=2, half_close_probe_s=0.05)) as w:
        w.agent(await w.tcp(silent))
        peers = [await w.connect() for _ in range(2)]
        for peer in peers:
            await peer.send()
        await eventually(lambda: w.router.in_flight == 2)
        answer = await w.ask()
        assert (answer.status, answer.problem["code"], answer["retry-after"]) == (429, "limit_exceeded", "1")
        assert (await w.ask("GET /v1/sessions", token="bob", session=None)).status != 429
        assert (await w.ask("GET /health/live", session=None)).status == 200  # nobody's
        for peer in peers:
            peer.writer.transport.abort()  # type: ignore[attr-defined]
        await eventually(lambda: w.router.in_flight == 0)
        w.agent(await w.tcp(replying(OK)), revision=2)
        assert (await w.ask()).status == 200


async def test_one_subject_cannot_take_all_the_room_to_wait() -> None:
    async with world(replace(FAST, waiting_per_subject_max=1)) as w:
        w.control.gate.clear()
        await (await w.connect()).send(session=None)
        await eventually(lambda: len(w.control.created) == 1)
        answer = await w.ask(session=None)
        assert (answer.status, answer.problem["limit"]) == (429, 1)
        other = await w.connect()
        await other.send(session=None, token="bob")
        await eventually(lambda: len(w.control.created) == 2)
        w.control.gate.set()
        assert (await other.answer()).status == 404
        assert (await w.ask(session=None)).status == 404  # the place is free again


async def test_a_subject_that_sends_too_fast_is_slowed_down() -> None:
    async with world(replace(FAST, requests_per_s=0.001, request_burst=3)) as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        statuses = []
        for _ in range(5):
            await peer.send()
            statuses.append((await peer.answer()).status)
        assert statuses == [200, 200, 200, 429, 429]
        assert (await w.ask(token="root")).status == 200  # the session's other user has a bucket of its own


async def test_only_so_many_requests_are_in_flight_in_all() -> None:
    async with world(replace(FAST, in_flight_max=1)) as w:
        w.agent(await w.tcp(silent))
        await (await w.connect()).send()
        await eventually(lambda: w.router.in_flight == 1)
        answer = await w.ask("GET /v1/sessions", session=None)
        assert (answer.status, answer.problem["limit"]) == (503, "in_flight")


async def test_only_so_many_connections_are_taken() -> None:
    async with world(replace(FAST, connections_max=2)) as w:
        w.agent(await w.tcp(replying(OK)))
        first, second = await w.connect(), await w.connect()
        await second.send()
        assert (await second.answer()).status == 200
        third = await w.connect()
        answer = await third.answer()
        assert (answer.status, answer.problem["limit"]) == (503, "connections")
        assert await third.to_end() == b""
        first.close()
        await eventually(lambda: w.router.connections == 1)
        assert (await w.ask()).status == 200


async def test_heads_that_never_end_hold_only_so_much_together() -> None:
    async with world(replace(FAST, held_bytes_max=200_000)) as w:
        peers = [await w.connect() for _ in range(20)]
        for peer in peers:
            await peer.write(b"GET / HTTP/1.1\r\nA: " + b"b" * 40_000)
        last = await w.connect()
        await eventually(lambda: w.router._engine.held_bytes > 200_000)
        await last.write(b"GET / HTTP/1.1\r\nA: " + b"b" * 40_000)
        answer = await last.answer()
        assert (answer.status, answer.problem["limit"]) == (503, "held_bytes")
        assert w.router._engine.held_bytes < 300_000


async def test_draining_ends_what_is_under_way_and_takes_nothing_new() -> None:
    go = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await go.wait()
        await peer.write(OK)

    async with world() as w:
        w.agent(await w.tcp(handle))
        idle, busy = await w.connect(), await w.connect()
        await idle.send("GET /health/live", session=None)
        assert (await idle.answer()).status == 200
        await busy.send()
        await eventually(lambda: w.router.in_flight == 1 and w.router.connections == 2)
        draining = asyncio.ensure_future(w.router.drain())
        assert await idle.to_end() == b""
        with pytest.raises(OSError):
            await w.connect()
        assert not draining.done()
        go.set()
        answer = await busy.answer()
        assert (answer.status, answer["connection"]) == (200, "close")
        assert await busy.to_end() == b""
        await draining
        await w.serving
        assert w.router.connections == w.router.in_flight == 0
        assert w.sessions.touched


async def test_a_connection_that_is_new_when_draining_begins_loses_no_request() -> None:
    async with world(replace(FAST, linger_timeout_s=20.0)) as w:
        w.agent(await w.tcp(replying(OK)))
        fresh, used = await w.connect(), await w.connect()
        await used.send()
        assert (await used.answer()).status == 200
        await eventually(lambda: w.router.connections == 2)
        draining = asyncio.create_task(w.router.drain())
        assert await used.to_end() == b""  # it was between two requests
        await fresh.send()
        answer = await fresh.answer()
        assert (answer.status, answer["connection"]) == (200, "close")
        fresh.close()
        await draining


async def test_draining_does_not_wait_for_ever() -> None:
    async with world(replace(FAST, drain_timeout_s=0.1, linger_timeout_s=0.1)) as w:
        w.agent(await w.tcp(silent))
        peer = await w.connect()
        await peer.send()
        await eventually(lambda: w.router.in_flight == 1)
        await w.router.drain()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()


async def test_a_client_that_does_not_read_its_answers_is_not_read_either() -> None:
    sent = 0
    async with world() as w:
        peer = await w.connect()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]

        async def pour() -> None:
            nonlocal sent
            while sent < 20_000_000:
                await peer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
                sent += 35_000

        pouring = asyncio.ensure_future(pour())
        await eventually(lambda: sent > 0)
        stuck_at = -1
        while stuck_at != sent:
            stuck_at = sent
            await w.turns()
        assert sent < 20_000_000
        pouring.cancel()
        await asyncio.gather(pouring, return_exceptions=True)
        peer.writer.transport.abort()  # type: ignore[attr-defined]
        await eventually(lambda: w.router.connections == 0)
        assert w.router._engine.held_bytes == 0
