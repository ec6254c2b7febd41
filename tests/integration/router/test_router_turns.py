"""Framing by the byte costs whoever does it, and nobody else."""

import asyncio
import time

import pytest

from tests.integration.router.world import AGENT_PATH, OK, Peer, World, replying, world

pytestmark = pytest.mark.anyio

CHUNK = b"1;x=y\r\nA\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
AMOUNT = 200_000  # chunks: seconds of work in one go


async def slowest(w: World, while_: asyncio.Task[None]) -> float:
    """The longest that a third party waited for an answer, seconds."""
    worst, count = 0.0, 0
    while not while_.done() or not count:
        begun = time.perf_counter()
        assert (await w.ask("GET /health/live", session=None)).status == 200
        worst, count = max(worst, time.perf_counter() - begun), count + 1
    return worst


def saying(answer: bytes):
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        await reader.read()

    return handle


@pytest.mark.parametrize(
    "answer",
    [HEAD + CHUNK * AMOUNT + b"0\r\n\r\n", b"HTTP/1.1 103 \r\n\r\n" * (AMOUNT // 4) + OK],
    ids=["chunks of one byte", "interim answers"],
)
async def test_an_agent_that_answers_in_crumbs_holds_up_nobody_else(answer: bytes) -> None:
    async with world() as w:
        w.agent(await w.tcp(saying(answer)))
        peer = await w.connect()

        async def take() -> None:
            await peer.send(f"GET {AGENT_PATH}/")
            got = 0
            while got < len(answer):
                got += len(await peer.reader.read(1 << 20))

        assert await slowest(w, asyncio.create_task(take())) < 0.25


async def test_a_client_that_sends_crumbs_holds_up_nobody_else() -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()

        async def send() -> None:
            await peer.send(f"POST {AGENT_PATH}/", "Transfer-Encoding: chunked", body=CHUNK * AMOUNT)
            await peer.write(b"0\r\n\r\n")
            assert (await peer.answer()).body == b"ok"

        # `replying` works in this loop too, a hundred milliseconds at a time.
        assert await slowest(w, asyncio.create_task(send())) < 1.0


async def test_what_came_in_turns_arrives_whole_and_in_order() -> None:
    content = b"".join(b"%d," % n for n in range(20_000))
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in content) + b"0\r\n\r\n"
    seen: list[bytes] = []
    async with world() as w:
        w.agent(await w.tcp(replying(HEAD + chunks, seen)))
        peer = await w.connect()
        for _ in range(2):
            await peer.send(f"POST {AGENT_PATH}/", "Transfer-Encoding: chunked", body=chunks)
        for _ in range(2):  # the second one waited behind the first, in the same reads
            assert (await peer.answer()).body == content
        assert [body for _, body in seen] == [content, content]


async def test_bytes_behind_an_answer_that_came_in_turns_end_the_connection() -> None:
    async with world() as w:
        seen: list[Peer] = []

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer = Peer(reader, writer)
            seen.append(peer)
            await peer.request()
            behind = OK * 2000 if len(seen) == 1 else b""
            await peer.write(HEAD + b"1\r\nA\r\n" * 300 + b"0\r\n\r\n" + behind)
            await reader.read()

        w.agent(await w.tcp(handle))
        for _ in range(2):
            assert (await w.ask()).body == b"A" * 300
        assert len(seen) == 2  # what was behind the first answer is nobody's answer
