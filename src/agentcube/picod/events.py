"""A response that is a stream of events: one JSON object a line, or server-sent events where these are preferred."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from agentcube.picod.messages import Request, Response
from agentcube.picod.problems import Problem

PING_S = 5.0
"""A silent stream says `ping` this often. That is how a client that closed is told from one that only has
no more to say (TCP tells those who write), and keeps the idle timers of proxies quiet."""

PATIENCE_S = 3600.0
"""How long a client may leave a stream unread, as the Router allows it. Who writes just waits."""

_NDJSON = b"application/x-ndjson"
_SSE = b"text/event-stream"
_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx passes on what comes instead of collecting it
    (b"x-content-type-options", b"nosniff"),
)


class EventStream:
    """Events to one client. A stream that is not closed ends with its connection: the client sees that it was cut."""

    def __init__(self, response: Response, *, sse: bool, ping_s: float) -> None:
        self._response = response
        self._sse = sse
        self._ping_s = ping_s
        self._loop = asyncio.get_running_loop()
        self._spoke = self._loop.time()
        self._sending = False
        self._timer = self._loop.call_later(ping_s, self._ping)

    @classmethod
    async def open(
        cls,
        request: Request,
        response: Response,
        status: int = 200,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        *,
        ping_s: float = PING_S,
    ) -> EventStream:
        """Begin the response; what the client prefers is in its Accept header.

        Raises:
            Problem: `method_not_allowed` for HEAD, which a stream has no answer to.
        """
        if request.method == "HEAD":
            raise Problem("method_not_allowed", "HEAD is not allowed here", headers=((b"allow", b"GET"),))
        sse = _prefers_sse(request.head.get(b"accept") or b"")
        kind = (b"content-type", _SSE if sse else _NDJSON)
        await response.begin(status, (kind, *_HEADERS, *headers), None)
        return cls(response, sse=sse, ping_s=ping_s)

    async def send(self, event: str, members: Mapping[str, Any]) -> None:
        """Send one event, waiting while the client is slow. ConnectionError when it is gone.

        One at a time: a stream has one sender.
        """
        await self.send_encoded(event, _json(event, members))

    async def send_encoded(self, event: str, data: bytes) -> None:
        """As `send`, of an object that is JSON already: one line of ASCII, with its `event`."""
        self._sending = True
        try:
            await self._response.write(self._framed(event, data), patience_s=PATIENCE_S)
        finally:
            self._sending = False
            self._spoke = self._loop.time()

    async def close(self, event: str = "", members: Mapping[str, Any] = {}) -> None:
        """The clean end of the stream, after a last event if one is given."""
        self._timer.cancel()
        await self._response.end(self._framed(event, _json(event, members)) if event else b"")

    def _framed(self, event: str, data: bytes) -> bytes:
        if self._sse:
            return b"event: %s\ndata: %s\n\n" % (event.encode("ascii"), data)
        return data + b"\n"

    def _ping(self) -> None:
        if self._response.complete:
            return
        now = self._loop.time()
        if not self._sending and now >= self._spoke + self._ping_s:
            try:
                self._response.post(self._framed("ping", _json("ping", {})))
            except ConnectionError:
                return
            self._spoke = now
        due = now if self._sending else self._spoke
        self._timer = self._loop.call_at(due + self._ping_s, self._ping)


def _json(event: str, members: Mapping[str, Any]) -> bytes:
    return json.dumps({"event": event, **members}, separators=(",", ":")).encode("ascii")


def _prefers_sse(accept: bytes) -> bool:
    """Whether server-sent events are wanted more than lines (RFC 9110 §12.5.1); a named type beats a wildcard."""
    sse = lines = (0.0, False)
    for part in accept.split(b","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(b";"))
        wish = (_quality(parameters), b"*" not in kind)
        if kind in (_SSE, b"text/*", b"*/*"):
            sse = max(sse, wish, key=lambda one: (one[1], one[0]))
        if kind in (_NDJSON, b"application/*", b"*/*"):
            lines = max(lines, wish, key=lambda one: (one[1], one[0]))
    return sse[0] > 0 and sse > lines


def _quality(parameters: list[bytes]) -> float:
    for parameter in parameters:
        if parameter.startswith(b"q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0
