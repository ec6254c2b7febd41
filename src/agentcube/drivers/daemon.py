"""What a driver asks of a sandbox's PicoD: health, binding, readiness. One connection per question.

It speaks over a connected socket that the driver dialled, and knows nothing of how that came about.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from agentcube import http1
from agentcube.errors import Conflict, DriverFailed, SandboxTimedOut, StartFailed, StartTimedOut, Unreachable
from agentcube.model.ids import SandboxId

ANSWER_BYTES_MAX = 256 * 1024
_CALL_S = 5.0  # health and bind answer in a millisecond; this is for a machine under load
_GRACE_S = 2.0  # on top of what PicoD was asked to wait


@dataclass(frozen=True, slots=True)
class Health:
    """What PicoD says of itself."""

    sandbox_id: SandboxId
    bound: bool


async def health(sock: socket.socket) -> Health:
    """PicoD's health. Takes the socket over. Raises Unreachable, SandboxTimedOut, DriverFailed."""
    status, body = await call(sock, b"GET", b"/health", timeout_s=_CALL_S)
    if status != 200 or not isinstance(body.get("sandbox_id"), str):
        raise DriverFailed(f"PicoD answered {status} to a health question")
    return Health(SandboxId(body["sandbox_id"]), body.get("bound") is True)


async def bind(sock: socket.socket, token: str, env: Mapping[str, str]) -> None:
    """Bind the sandbox to the session in `token`, with the session's own `env`. Takes the socket over.

    Raises:
        Conflict: it belongs to another session.
        DriverFailed: PicoD refused the token.
        Unreachable, SandboxTimedOut: no answer.
    """
    status, body = await call(sock, b"POST", b"/bind", {"token": token, "env": dict(env)}, timeout_s=_CALL_S)
    if status == 409:
        raise Conflict("the sandbox is bound to another session")
    if status != 200:
        raise DriverFailed(f"PicoD refused the binding with {status}: {body.get('detail', '')}")


async def ready(sock: socket.socket, timeout: timedelta) -> None:
    """Return once the declared ports accept connections. Takes the socket over.

    Raises:
        StartFailed: the command ended first; tells its exit status.
        StartTimedOut: the ports did not open in time.
        Unreachable: PicoD is gone.
    """
    seconds = max(0.001, timeout.total_seconds())
    try:
        status, body = await call(
            sock, b"GET", b"/ready?timeout=%.3fs" % seconds, timeout_s=seconds + _GRACE_S
        )
    except SandboxTimedOut as exc:
        raise StartTimedOut(f"not ready within {seconds:g} s") from exc
    if status == 200:
        return
    detail = str(body.get("detail", f"status {status}"))
    if body.get("code") == StartTimedOut.code:
        raise StartTimedOut(detail)
    if body.get("code") == StartFailed.code:
        exit_code = body.get("exit_code")
        raise StartFailed(detail, exit_code=exit_code if isinstance(exit_code, int) else None)
    raise DriverFailed(f"PicoD answered {status} to a readiness question: {detail}")


async def call(
    sock: socket.socket,
    method: bytes,
    target: bytes,
    body: Any = None,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    timeout_s: float,
) -> tuple[int, dict[str, Any]]:
    """One exchange; returns status and JSON object. The connection ends with it, however it goes.

    Raises:
        Unreachable: the connection broke.
        SandboxTimedOut: no whole answer within `timeout_s`.
        DriverFailed: the answer is not HTTP with a JSON object of at most 256 KiB.
    """
    headers = [(b"host", b"picod"), (b"connection", b"close"), *headers]
    payload = b""
    if body is not None:
        payload = json.dumps(body).encode()
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(payload))]
    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(sock, method, http1.request_head(method, target, headers) + payload)
    except TimeoutError as exc:
        raise SandboxTimedOut(f"PicoD did not answer within {timeout_s:g} s") from exc
    except OSError as exc:
        raise Unreachable(f"PicoD closed the connection: {exc.strerror or exc}") from exc
    except (http1.ProtocolError, ValueError) as exc:
        raise DriverFailed(f"PicoD's answer is not HTTP with JSON: {exc}") from exc
    finally:
        sock.close()


async def _exchange(sock: socket.socket, method: bytes, request: bytes) -> tuple[int, dict[str, Any]]:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, request)
    received = await _receive(sock)
    while (end := http1.response_end(received)) < 0:
        received += await _receive(sock)
    head = http1.parse_response(received[:end], method)
    tracker, payload, rest = http1.track(head.body), list[bytes](), received[end:]
    tracker.feed(rest, payload)
    while not tracker.done:
        if sum(map(len, payload)) > ANSWER_BYTES_MAX:
            raise ValueError("too long")
        data = await loop.sock_recv(sock, 65536)
        if not data and head.body == http1.UNTIL_CLOSE:
            break
        if not data:
            raise ConnectionResetError("it ended in the middle of an answer")
        tracker.feed(data, payload)
    answer = json.loads(b"".join(payload))
    if not isinstance(answer, dict):
        raise ValueError("no JSON object")
    return head.status, answer


async def _receive(sock: socket.socket) -> bytes:
    data = await asyncio.get_running_loop().sock_recv(sock, 65536)
    if not data:
        raise ConnectionResetError("it ended without an answer")
    return data
