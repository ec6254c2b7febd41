"""Bodies pass as they come, both ways, and stop when the other side stops."""

import asyncio
import resource
from dataclasses import replace
from typing import Any

import pytest

from agentcube import http1
from tests.integration.router.world import AGENT_PATH, FAST, OK, SID, Peer, eventually, replying, world

pytestmark = pytest.mark.anyio

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_events_arrive_one_by_one() -> None:
    taken = asyncio.Queue[None]()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await peer.write(EVENTS)
        for n in range(5):
            await peer.write(http1.chunk(b"data: %d\n\n" % n))
            await taken.get()  # the next is made only once this one has arrived
        await peer.write(b"0\r\nX-Sum: 5\r\n\r\n")

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send()
        assert http1.parse_response(await peer.head(), b"GET").body == http1.CHUNKED
        body = http1.ChunkedBody()
        for n in range(5):
            event: list[bytes] = []
            while not event:
                body.feed(peer.rest or await peer.reader.read(65536), event)
                peer.rest = b""
            assert event == [b"data: %d\n\n" % n]
            if n == 2:
                w.sessions.touched.clear()
            taken.put_nowait(None)
        while not body.done:
            body.feed(await peer.reader.read(65536))
        assert body.trailers == [(b"x-sum", b"5")]
        await eventually(lambda: SID in w.sessions.touched)


async def test_chunked_bodies_pass_both_ways_with_trailers() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        head = http1.parse_request(await peer.head())
        assert head.body == http1.CHUNKED
        answer = await peer._whole(head)
        await peer.write(
            EVENTS + http1.chunk(answer.body) + b"0\r\nX-Back: " + answer.trailers[0][1] + b"\r\n\r\n"
        )

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Transfer-Encoding: chunked", "Trailer: X-There")
        for piece in (b"3\r\nab", b"c\r", b"\n2\r\nde\r\n", b"0\r\nX-There: 7\r\n", b"\r\n"):
            await peer.write(piece)
        answer = await peer.answer()
        assert (answer.body, answer.trailers) == (b"abcde", [(b"x-back", b"7")])


async def test_large_bodies_pass_whole_both_ways() -> None:
    size = 64 << 20

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.head()
        got = len(peer.rest)
        while got < size:
            got += len(await reader.read(1 << 20))
        await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(64):
            await peer.write(b"x" * (1 << 20))

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", f"Content-Length: {size}")
        for _ in range(64):
            await peer.write(b"y" * (1 << 20))
        await peer.head()
        got = len(peer.rest)
        while got < size:
            got += len(await peer.reader.read(1 << 20))
        assert got == size


@pytest.mark.parametrize("towards", ["client", "sandbox"])
async def test_a_slow_reader_stops_the_writer_and_memory_stays_flat(towards: str) -> None:
    size, written, go = 256 << 20, 0, asyncio.Event()

    async def pour(peer: Peer) -> None:
        nonlocal written
        while written < size:
            await peer.write(b"x" * (1 << 18))
            written += 1 << 18

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.head()
        if towards == "client":
            await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            await pour(peer)
        else:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await go.wait()
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            while await reader.read(1 << 20):
                pass

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        if towards == "client":
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await peer.send()
        else:
            await peer.send(f"POST {AGENT_PATH}/", f"Content-Length: {size}")
            pouring = asyncio.ensure_future(pour(peer))
        await eventually(lambda: written > 0)
        stuck_at = -1
        while stuck_at != written:  # until nothing more is taken
            stuck_at = written
            await w.turns()
        assert written < 64 << 20, "sockets' own buffers and ours, not the body"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if towards == "client":
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            got = 0
            while got < size:
                got += len(await peer.reader.read(1 << 20))
        else:
            go.set()
            await pouring
        grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown_kb < 40_000
        peer.close()


async def test_interim_answers_pass() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        while True:
            head = http1.parse_request(await peer.head())
            assert head.expect_continue
            await peer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
            await peer.write(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 1")
            while len(peer.rest) < 5:
                peer.rest += await reader.read(100)
            peer.rest = peer.rest[5:]
            await peer.write(b"02 Processing\r\n\r\n" + OK)

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        for _ in range(2):
            await peer.send(f"POST {AGENT_PATH}/", "Expect: 100-continue", "Content-Length: 5")
            assert await peer.head() == b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
            assert await peer.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
            await peer.write(b"hello")
            assert await peer.head() == b"HTTP/1.1 102 Processing\r\n\r\n"
            assert (await peer.answer()).body == b"ok"


async def test_an_early_final_answer_is_relayed_while_the_client_still_sends() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.head()
        await peer.write(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await reader.read(-1)

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Content-Length: 10000000")
        await peer.write(b"x" * 1000)
        answer = await peer.answer()
        await peer.write(b"x" * 500_000)  # still taken, so that no reset overtakes the answer
        assert (answer.status, answer.body, answer["connection"]) == (413, b"big", "close")
        assert await peer.to_end() == b""


@pytest.mark.parametrize(
    ("first", "answer", "status"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n", 200),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", 200),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: x\r\n\r\n", 304),
    ],
)
async def test_answers_without_a_body_leave_the_connection_usable(
    first: str, answer: bytes, status: int
) -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(answer)))
        peer = await w.connect()
        for _ in range(3):
            await peer.send(f"{first} {AGENT_PATH}/")
            got = await peer.answer(head=True)
            assert (got.status, peer.rest) == (status, b"")
            if status == 204:
                assert "content-length" not in got


@pytest.mark.parametrize(
    "part",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ],
)
async def test_half_an_answer_never_ends_cleanly(part: bytes) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await peer.write(part)

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()
        await eventually(lambda: w.router.in_flight == 0)


async def test_an_answer_that_ends_with_its_connection_is_whole_or_broken_off() -> None:
    broken = False

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await peer.write(b"HTTP/1.0 200 OK\r\n\r\nto the end")
        if broken:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset
            writer.transport.abort()

    async with world() as w:
        w.agent(await w.tcp(handle))
        answer = await w.ask()
        assert (answer.body, answer["connection"]) == (b"to the end", "close")
        broken = True
        peer = await w.connect()
        await peer.send()
        with pytest.raises(ConnectionResetError):
            await peer.to_end()


async def test_http_1_0_clients_get_plain_answers_and_a_close() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, seen)))
        peer = await w.connect()
        lines = f"GET {AGENT_PATH}/ HTTP/1.0\r\nAuthorization: Bearer alice\r\nX-AgentCube-Session-Id: {SID}\r\n\r\n"
        await peer.write(lines.encode())
        answer = await peer.answer()
        assert (answer.status, answer["connection"]) == (200, "close")
        assert await peer.to_end() == b""
        assert (seen[0][0].minor, seen[0][0].get(b"host") is not None) == (0, True)


async def test_a_client_that_ends_its_side_still_gets_its_answer() -> None:
    go = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await go.wait()
        await peer.write(OK)

    async with world() as w:
        w.agent(await w.tcp(handle))
        for body in (b"", b"some"):
            go.clear()
            peer = await w.connect()
            await peer.send(f"POST {AGENT_PATH}/", body=body)
            peer.writer.write_eof()
            await w.turns(2)
            go.set()
            answer = await peer.answer()
            assert (answer.status, answer["connection"]) == (200, "close")
            assert await peer.to_end() == b""


async def test_a_client_that_left_is_noticed_while_its_command_runs() -> None:
    gone = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await reader.read()
        gone.set()

    async with world(replace(FAST, half_close_probe_s=1.5)) as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send()
        await eventually(lambda: w.router.in_flight == 1)
        peer.close()
        async with asyncio.timeout(2.8):  # one probe tells
            await gone.wait()
        await eventually(lambda: w.router.in_flight == 0 and w.router.connections == 0)


async def test_a_client_that_left_a_stream_is_noticed_when_that_says_one_word_more() -> None:
    gone, say = asyncio.Event(), asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        await say.wait()
        writer.write(b"1\r\nb\r\n")
        await reader.read()
        gone.set()

    async with world(FAST) as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send()
        await peer.head()
        peer.close()
        await w.turns(5)
        say.set()
        async with asyncio.timeout(20):
            await gone.wait()
        await eventually(lambda: w.router.in_flight == 0 and w.router.connections == 0)


async def test_a_client_that_leaves_within_its_body_ends_the_sandboxes_request() -> None:
    ends: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.head()
        try:
            ends.append(await reader.read(-1))
        except ConnectionResetError:
            ends.append(b"reset")

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Content-Length: 100")
        await eventually(lambda: w.router.in_flight == 1)
        peer.close()
        await eventually(lambda: ends and w.router.in_flight == 0)


async def test_requests_that_were_pipelined_before_an_end_are_all_answered() -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        for _ in range(3):
            await peer.send(f"POST {AGENT_PATH}/", body=b"x")
        await peer.write(b"GET / HT")
        peer.writer.write_eof()
        for _ in range(3):
            assert (await peer.answer()).status == 200
        assert await peer.to_end() == b""
        await eventually(lambda: w.router.connections == 0)


async def test_an_end_within_pipelined_refusals_loses_none() -> None:
    async with world() as w:
        peer = await w.connect()
        await peer.write(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        peer.writer.write_eof()
        for turn in range(5):
            answer = await peer.answer()
            assert (answer.status, "connection" in answer) == (404, turn == 4)
        assert await peer.to_end() == b""


async def test_a_client_that_leaves_while_its_session_is_made_is_counted_out() -> None:
    async with world() as w:
        w.control.gate.clear()
        w.control.make = w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        await peer.send(session=None)
        await eventually(lambda: bool(w.control.created))
        sock = peer.writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER 0: a reset
        peer.writer.transport.abort()  # type: ignore[attr-defined]
        await eventually(lambda: w.router.in_flight == 0)
        w.control.gate.set()
        await eventually(lambda: w.router._engine.waiting == 0)
        entry = w.router._engine.sessions.find(w.control.make.id)
        assert entry is not None
        assert entry.in_flight == 0


async def test_what_we_assert_may_not_come_as_a_trailer() -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Transfer-Encoding: chunked")
        await peer.write(b"0\r\nX-AgentCube-Session-Id: other\r\n\r\n")
        assert (await peer.answer()).problem["code"] == "malformed_request"
