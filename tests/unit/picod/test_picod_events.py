"""Streams of events over a real socket: framing, what the client prefers, pings, and no clean end of a cut one."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from agentcube.http1 import ChunkedBody, parse_response, response_end
from agentcube.picod.events import EventStream, _prefers_sse
from agentcube.picod.messages import Request, Response
from agentcube.picod.problems import Problem
from agentcube.picod.server import Server


async def _counting(request: Request, response: Response) -> None:
    stream = await EventStream.open(request, response, headers=((b"x-more", b"1"),))
    for number in range(3):
        await stream.send("number", {"is": number, "text": "\u2028\n"})
    await stream.close("last", {"of": 4})


async def _failing(request: Request, response: Response) -> None:
    stream = await EventStream.open(request, response)
    await stream.send("number", {"is": 0})
    raise Problem("invalid", "too late to say so")


async def _silent(request: Request, response: Response) -> None:
    await EventStream.open(request, response, ping_s=0.01)
    await asyncio.Event().wait()


async def _empty(request: Request, response: Response) -> None:
    await response.empty()


def _running(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    del run.__wrapped__  # type: ignore[attr-defined]  # pytest looks behind it
    return run


class _Client:
    """Both ends of a connection to a server with one handler."""

    def __init__(self, handler, loop: asyncio.AbstractEventLoop) -> None:  # type: ignore[no-untyped-def]
        self.server = Server(loop, handler)
        self.socket, self.theirs = socket.socketpair()
        self.socket.setblocking(False)
        self._loop = loop

    async def __aenter__(self) -> _Client:
        await self._loop.connect_accepted_socket(self.server.protocol, self.theirs)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.socket.close()
        while self.server.connections:
            await asyncio.sleep(0)

    async def ask(self, line: bytes, *lines: bytes) -> None:
        head = b"\r\n".join((line, b"Host: picod", *lines, b"", b""))
        await self._loop.sock_sendall(self.socket, head)

    async def read(self, until: bytes | None = None) -> bytes:
        """Everything up to `until`, or to the end of the connection."""
        data = b""
        async with asyncio.timeout(30):
            while until is None or until not in data:
                more = await self._loop.sock_recv(self.socket, 65536)
                if not more:
                    break
                data += more
        return data


def _body(answer: bytes) -> tuple[bytes, bool]:
    """The content of a chunked answer, and whether it ended cleanly."""
    end = response_end(answer, 0)
    head = parse_response(answer[:end], b"GET")
    assert head.get(b"transfer-encoding") == b"chunked"
    assert head.get(b"content-length") is None
    body, pieces = ChunkedBody(), list[bytes]()
    body.feed(answer[end:], pieces)
    return b"".join(pieces), body.done


@_running
async def test_events_come_as_lines_and_the_connection_serves_on() -> None:
    async with _Client(_counting, asyncio.get_running_loop()) as client:
        for _ in range(2):
            await client.ask(b"GET / HTTP/1.1")
            answer = await client.read(b"\r\n0\r\n\r\n")
            body, whole = _body(answer)
            assert whole
            assert b"content-type: application/x-ndjson\r\n" in answer
            assert b"x-more: 1\r\n" in answer
            events = [json.loads(line) for line in body.splitlines()]
            numbers = [{"event": "number", "is": n, "text": "\u2028\n"} for n in range(3)]
            assert events == [*numbers, {"event": "last", "of": 4}]


@_running
async def test_who_prefers_server_sent_events_gets_them() -> None:
    async with _Client(_counting, asyncio.get_running_loop()) as client:
        await client.ask(b"GET / HTTP/1.1", b"Accept: text/event-stream")
        answer = await client.read(b"\r\n0\r\n\r\n")
        assert b"content-type: text/event-stream\r\n" in answer
        first = _body(answer)[0].split(b"\n\n")[0]
        assert first == b'event: number\ndata: {"event":"number","is":0,"text":"\\u2028\\n"}'


@_running
async def test_for_http_1_0_the_stream_ends_with_the_connection() -> None:
    async with _Client(_counting, asyncio.get_running_loop()) as client:
        await client.ask(b"GET / HTTP/1.0", b"Connection: keep-alive")
        answer = await client.read()
        assert b"chunked" not in answer
        assert b"connection: close\r\n" in answer
        assert len(answer[response_end(answer, 0) :].splitlines()) == 4


@_running
async def test_a_handler_that_fails_cuts_the_connection() -> None:
    async with _Client(_failing, asyncio.get_running_loop()) as client:
        await client.ask(b"GET / HTTP/1.1")
        body, whole = _body(await client.read())
        assert (body, whole) == (b'{"event":"number","is":0}\n', False)


@_running
async def test_a_silent_stream_pings_and_a_client_that_goes_ends_it() -> None:
    async with _Client(_silent, asyncio.get_running_loop()) as client:
        await client.ask(b"GET / HTTP/1.1")
        await client.read(b'{"event":"ping"}\n')
        await client.read(b'{"event":"ping"}\n')


@_running
async def test_a_stream_has_no_head_of_its_own() -> None:
    async with _Client(_counting, asyncio.get_running_loop()) as client:
        await client.ask(b"HEAD / HTTP/1.1")
        assert (await client.read(b"\r\n\r\n")).startswith(b"HTTP/1.1 405 ")


@_running
async def test_no_content_has_no_length() -> None:
    async with _Client(_empty, asyncio.get_running_loop()) as client:
        await client.ask(b"DELETE / HTTP/1.1")
        answer = await client.read(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 204 ")
        assert b"content-length" not in answer


@pytest.mark.parametrize(
    ("accept", "sse"),
    [
        (b"", False),
        (b"*/*", False),
        (b"application/json", False),
        (b"text/event-stream", True),
        (b"text/event-stream, */*", True),
        (b"text/event-stream, application/x-ndjson", False),
        (b"text/event-stream, application/x-ndjson;q=0.5", True),
        (b"text/event-stream;q=0.5, application/x-ndjson", False),
        (b"text/html, text/*;q=0.9", True),
        (b"text/event-stream;q=0", False),
        (b"TEXT/Event-Stream ; Q=1.0", True),
        (b"text/event-stream;q=x", False),
    ],
)
def test_the_accept_header_chooses(accept: bytes, sse: bool) -> None:
    assert _prefers_sse(accept) is sse
