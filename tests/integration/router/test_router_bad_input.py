"""Everything on the smuggling list is refused, closed, and reaches no sandbox."""

from dataclasses import replace
from typing import Any

import pytest

from tests.integration.router.world import AGENT_PATH, FAST, OK, SID, replying, world
from tests.unit.http1.test_http1_heads import BAD_REQUESTS

pytestmark = pytest.mark.anyio

START = f"POST {AGENT_PATH}/ HTTP/1.1\r\nAuthorization: Bearer alice\r\nX-AgentCube-Session-Id: {SID}\r\n".encode()
CHUNKED = START + b"Host: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def whole(head: bytes) -> bytes:
    """A bad head of the http1 tests, with the credentials that would let it through."""
    first, _, rest = head.partition(b"\r\n")
    first = first.replace(b" / ", f" {AGENT_PATH}/ ".encode())
    return b"\r\n".join((first, START.partition(b"\r\n")[2] + rest))


BAD = {
    **{name: (whole(head), status) for name, (head, status) in BAD_REQUESTS.items() if name[:4] != "lead"},
    "leading empty line": (b"\r\n" + START + b"Host: x\r\n\r\n", 400),
    "two authorizations": (START + b"Host: x\r\nAuthorization: Bearer bob\r\n\r\n", 400),
    "two session headers": (START + b"Host: x\r\nX-AgentCube-Session-Id: other\r\n\r\n", 400),
    "HTTP/0.9 without an end": (b"GET /\r\n", 400),
    "bare LF without an end": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "TLS to a plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "garbage": (b"\x00" * 100, 400),
    "endless head": (START + b"A: " + b"b" * 70_000, 431),
    "bad chunk size": (CHUNKED + b"zz\r\nabc\r\n0\r\n\r\n", 400),
    "missing CRLF after chunk": (CHUNKED + b"3\r\nabcX0\r\n\r\n", 400),
    "bare LF chunk": (CHUNKED + b"3\nabc\n0\n\n", 400),
    "bad trailer": (CHUNKED + b"0\r\na : b\r\n\r\n", 400),
    "trailer that frames": (CHUNKED + b"0\r\nContent-Length: 5\r\n\r\n", 400),
}


@pytest.mark.parametrize(("sent", "status"), BAD.values(), ids=BAD.keys())
async def test_bad_input_is_answered_and_closed_and_not_forwarded(sent: bytes, status: int) -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        peer = await w.connect()
        await peer.write(sent)
        answer = await peer.answer()
        assert (answer.status, answer["connection"]) == (status, "close")
        assert answer.problem["code"] == "malformed_request"
        assert await peer.to_end() == b""
        assert not seen


async def test_nothing_behind_a_bad_request_is_read() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        peer = await w.connect()
        await peer.write(START + b"Host: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc")
        await peer.write(START + b"Host: x\r\n\r\n")
        assert (await peer.answer()).status == 400
        assert await peer.to_end() == b""
        assert not seen


async def test_a_body_announced_as_too_large_is_413() -> None:
    async with world(replace(FAST, body_bytes_max=10)) as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Content-Length: 11")
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (413, "body_too_large")
        assert await peer.to_end() == b""


async def test_a_body_that_grows_too_large_is_413() -> None:
    async with world(replace(FAST, body_bytes_max=10)) as w:
        w.agent(await w.tcp(replying(OK)))
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/", "Transfer-Encoding: chunked")
        await peer.write(b"8\r\nabcdefgh\r\n")
        await peer.write(b"8\r\nabcdefgh\r\n")
        assert (await peer.answer()).problem["code"] == "body_too_large"
        assert await peer.to_end() == b""


BAD_ANSWERS = {
    "not HTTP": b"hello\r\n\r\n",
    "both framings": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "fold": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    "too large": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000,
    "chunked and gzip": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcX",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    "endless extension": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 2000,
    "unasked 101": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", BAD_ANSWERS.values(), ids=BAD_ANSWERS.keys())
async def test_a_malformed_answer_is_a_502_of_ours(sent: bytes) -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(sent)))
        peer = await w.connect()
        await peer.send()
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (502, "bad_answer")
        assert answer["x-agentcube-session-id"] == SID
        w.agent(await w.tcp(replying(OK)))
        await peer.send()
        assert (await peer.answer()).status == 200, "the client's connection is not to blame"


async def test_bytes_behind_an_answer_are_never_taken_for_the_next() -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged")))
        peer = await w.connect()
        for _ in range(3):
            await peer.send()
            assert (await peer.answer()).body == b"ok"
