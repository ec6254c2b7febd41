"""What a driver hears from PicoD, whatever PicoD says."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest

from agentcube.drivers import daemon
from agentcube.errors import (
    AgentCubeError,
    Conflict,
    DriverFailed,
    SandboxTimedOut,
    StartFailed,
    StartTimedOut,
    Unreachable,
)

pytestmark = pytest.mark.anyio


def http(status: int, body: object, *, framing: str = "length") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = b"HTTP/1.1 %d X\r\n" % status
    if framing == "length":
        return head + b"content-length: %d\r\n\r\n" % len(data) + data
    if framing == "chunked":
        return head + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    return head + b"connection: close\r\n\r\n" + data


async def asked(
    answer: bytes, question: Callable[[socket.socket], Awaitable[object]]
) -> tuple[object, bytes]:
    """What `question` returns when PicoD answers with these bytes, and what PicoD received."""
    ours, its = socket.socketpair()
    ours.setblocking(False)
    its.setblocking(False)
    loop = asyncio.get_running_loop()

    async def picod() -> bytes:
        with its:
            received = await loop.sock_recv(its, 65536)
            try:
                for at in range(0, len(answer), 7):  # in small pieces, as a slow peer sends
                    await loop.sock_sendall(its, answer[at : at + 7])
            except (BrokenPipeError, ConnectionResetError):
                pass  # cut off in the middle of an answer that was too long
            return received

    task = loop.create_task(picod())
    try:
        result = await question(ours)
    finally:
        received = await task
    assert ours.fileno() == -1  # taken over, and closed
    return result, received


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
async def test_health_is_read_in_every_framing(framing: str) -> None:
    answer = http(200, {"status": "ok", "sandbox_id": "sb-1", "bound": True}, framing=framing)
    health, received = await asked(answer, daemon.health)
    assert health == daemon.Health(daemon.SandboxId("sb-1"), True)
    assert received.startswith(b"GET /health HTTP/1.1\r\n")


async def test_a_binding_carries_token_and_environment() -> None:
    _, received = await asked(
        http(200, {"session_id": "s"}), lambda sock: daemon.bind(sock, "t.o.k", {"A": "ü"})
    )
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"POST /bind HTTP/1.1")
    assert json.loads(body) == {"token": "t.o.k", "env": {"A": "ü"}}


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (http(409, {"code": "conflict"}), Conflict),
        (http(401, {"detail": "bad token"}), DriverFailed),
        (http(500, {}), DriverFailed),
        (b"", Unreachable),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}", Unreachable),
        (b"SSH-2.0-OpenSSH\r\n\r\n", DriverFailed),
        (http(200, b"[1]"), DriverFailed),
        (http(200, b"not json"), DriverFailed),
        (http(200, b" " * (daemon.ANSWER_BYTES_MAX + 100_000), framing="close"), DriverFailed),
    ],
)
async def test_other_answers_to_a_binding_are_errors(answer: bytes, error: type[AgentCubeError]) -> None:
    with pytest.raises(error):
        await asked(answer, lambda sock: daemon.bind(sock, "t", {}))


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (http(503, {"code": "start_failed", "detail": "it ended", "exit_code": 3}), StartFailed, "it ended"),
        (http(504, {"code": "start_timed_out", "detail": "not yet"}), StartTimedOut, "not yet"),
        (http(500, {"code": "internal", "detail": "oops"}), DriverFailed, "oops"),
    ],
)
async def test_why_a_sandbox_is_not_ready(answer: bytes, error: type[AgentCubeError], says: str) -> None:
    with pytest.raises(error, match=says) as caught:
        await asked(answer, lambda sock: daemon.ready(sock, timedelta(seconds=2)))
    if error is StartFailed:
        assert caught.value.context == {"exit_code": 3}


async def test_the_wait_for_readiness_is_told_to_picod() -> None:
    _, received = await asked(
        http(200, {"ready": True}), lambda sock: daemon.ready(sock, timedelta(milliseconds=1500))
    )
    assert received.startswith(b"GET /ready?timeout=1.500s HTTP/1.1")


async def test_silence_ends_at_the_deadline() -> None:
    ours, its = socket.socketpair()
    ours.setblocking(False)
    with its, pytest.raises(SandboxTimedOut):
        await daemon.call(ours, b"GET", b"/health", timeout_s=0.05)
