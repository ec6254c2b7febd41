"""A request as handlers see it and the response as they write it. Bytes and flow, no routes."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any, Callable, Protocol
from urllib.parse import parse_qsl, unquote_to_bytes

from agentcube.http1 import LAST_CHUNK, REASONS, RequestHead, chunk, response_head
from agentcube.picod.problems import PROBLEM_TYPE, Problem

JSON_BYTES_MAX = 32 * 1024 * 1024  # 24 MiB of a file in base64; larger files come as multipart
ROOM_S = 30.0  # how long a body waits for others to be done; the Router waits for 60
_JSON_IN_LOOP_MAX = 64 * 1024  # larger bodies are parsed and measured in a worker thread
_PIECE = 48 * 1024  # a multiple of three, for base64; half a millisecond of escaping
_QUERY_FIELDS_MAX = 32
_WITHOUT_BODY = (204, 304)  # RFC 9110 §6.4.1
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Exchange(Protocol):
    """What a connection gives to the request in progress on it."""

    @property
    def reusable(self) -> bool:
        """Whether another request can follow: the body of this one has come, whole and well-formed."""
        ...

    async def read_body(self) -> bytes:
        """The next piece of the body, b"" at its end. Problem when it is malformed or stalls."""
        ...

    async def write(self, data: bytes, patience_s: float = ...) -> None:
        """Send, waiting while the client is slow, `patience_s` at most. ConnectionError when it is gone."""
        ...

    def post(self, data: bytes) -> None:
        """Send something small without waiting. ConnectionError when the client is gone."""
        ...


class Room:
    """Memory for JSON bodies, which all requests share: PicoD's own is bounded."""

    def __init__(self, total: int = JSON_BYTES_MAX, *, patience_s: float = ROOM_S) -> None:
        self._left = total
        self._patience_s = patience_s
        self._waiting: list[asyncio.Future[None]] = []

    async def take(self, size: int) -> bool:
        """Take `size` bytes, waiting for others to be done; False when they take too long."""
        deadline = time.monotonic() + self._patience_s
        while size > self._left:
            given = asyncio.get_running_loop().create_future()
            self._waiting.append(given)
            try:
                await asyncio.wait_for(given, deadline - time.monotonic())
            except asyncio.TimeoutError:
                return False
            finally:
                if given in self._waiting:
                    self._waiting.remove(given)
        self._left -= size
        return True

    def give(self, size: int) -> None:
        """Give taken bytes back."""
        self._left += size
        waiting, self._waiting = self._waiting, []
        for given in waiting:
            if not given.done():
                given.set_result(None)


class Text:
    """Bytes that stand in an answer as a JSON text, escaped a piece at a time.

    Whole, the escapes of eight megabytes of zeros are fifty, several times over.
    """

    def __init__(self, data: bytes | bytearray, *, as_base64: bool = False) -> None:
        self._data = data
        self._as_base64 = as_base64

    def __len__(self) -> int:
        return len(self._data)

    def pieces(self) -> Iterator[bytes]:
        """The text without its quotes; bytes that are no UTF-8 become U+FFFD."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for start in range(0, len(self._data), _PIECE):
            piece = self._data[start : start + _PIECE]
            if self._as_base64:
                yield base64.b64encode(piece)
            else:
                text = decoder.decode(piece, final=start + _PIECE >= len(self._data))
                yield json.dumps(text)[1:-1].encode("ascii")


class Request:
    """One request. `path` is raw (percent-encoded); `id` is the client's request id, or one made here.

    `params` are what stands for the `{names}` of the route's path. A JSON body takes from `room`
    until `close`.
    """

    def __init__(self, head: RequestHead, exchange: Exchange, room: Room) -> None:
        self.head = head
        self.method = head.method.decode("ascii")
        raw_path, _, self._query = head.target.partition(b"?")
        self.path = raw_path.decode("ascii")
        self.params: dict[str, str] = {}
        self._exchange = exchange
        self._room = room
        self._taken = 0
        self.id = _request_id(head)

    def close(self) -> None:
        """The body is no longer needed: it makes room for others."""
        self.hand_over()()

    def hand_over(self) -> Callable[[], None]:
        """Let what was made of the body outlive the request: it makes room for others when this is called."""
        taken, self._taken = self._taken, 0
        return lambda: self._room.give(taken)

    def query(self) -> dict[str, str]:
        """The query's fields; bytes that are not UTF-8 survive as surrogates. Problem when malformed."""
        try:
            pairs = parse_qsl(
                self._query.decode("ascii"),
                keep_blank_values=True,
                errors="surrogateescape",
                max_num_fields=_QUERY_FIELDS_MAX,
            )
        except ValueError:
            raise Problem("invalid", "malformed query") from None
        return dict(pairs)

    def tail(self, prefix: str) -> bytes:
        """What follows `prefix` in the path, percent-decoded."""
        return unquote_to_bytes(self.path[len(prefix) :])

    async def body(self) -> bytes:
        """The next piece of the body, b"" at its end."""
        return await self._exchange.read_body()

    async def json(self) -> dict[str, Any]:
        """The whole body as a JSON object; no body is an empty one.

        Raises:
            Problem: `invalid` when it is none, `body_too_large` over `JSON_BYTES_MAX`, `limit_exceeded`
                when others' bodies leave no room for `ROOM_S`.
        """
        await self.take(max(0, self.head.body))
        data = bytearray()
        while True:
            part = await self.body()
            if not part:
                break
            await self.take(len(data) + len(part) - self._taken)
            data += part
        if len(data) <= _JSON_IN_LOOP_MAX:
            return _parse_object(data)
        return await asyncio.get_running_loop().run_in_executor(None, _parse_object, data)

    async def take(self, size: int) -> None:
        """Take memory for what this request holds until `close`. Problem when there is too little for long."""
        if size <= 0:
            return
        if self._taken + size > JSON_BYTES_MAX:
            raise _json_too_large()
        if not await self._room.take(size):
            raise Problem("limit_exceeded", "other requests with large JSON bodies are under way here")
        self._taken += size


class Response:
    """Writes one response: `whole`/`json`/`empty` in one go, or `begin` and then `write` exactly `length` bytes.

    Where `length` is None, `end` says that all was written. What is not `complete` when its handler
    returns or fails breaks off with the connection: never a clean end of a body that is not whole.
    """

    def __init__(self, request: Request, exchange: Exchange) -> None:
        self._request = request
        self._exchange = exchange
        self.begun = False
        self.keep_alive = request.head.keep_alive
        self._left: int | None = 0  # bytes that are still owed; None: until `end`

    @property
    def complete(self) -> bool:
        """Whether every announced byte was written."""
        return self.begun and self._left == 0

    async def json(
        self, members: dict[str, Any], status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """A JSON object as the whole response; a `Text` that is long goes out in pieces."""
        headers = ((b"content-type", b"application/json"), *headers)
        if sum(len(value) for value in members.values() if isinstance(value, Text)) <= _JSON_IN_LOOP_MAX:
            await self.whole(status, headers, b"".join(_pieces(members)))
            return
        length = await asyncio.get_running_loop().run_in_executor(None, _length, members)
        if await self.begin(status, headers, length):
            for piece in _pieces(members):
                await self.write(piece)

    async def problem(self, problem: Problem) -> None:
        """The problem's document as the whole response."""
        data = problem.document(self._request.path, self._request.id)
        await self.whole(problem.status, ((b"content-type", PROBLEM_TYPE), *problem.headers), data)

    async def empty(self, status: int = 204, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        """A response without a body."""
        await self.whole(status, headers, b"")

    async def whole(self, status: int, headers: tuple[tuple[bytes, bytes], ...], data: bytes) -> None:
        """A response whose body is `data`."""
        head = self._head(status, headers, len(data))
        self._left = 0
        await self._exchange.write(head if self._request.method == "HEAD" else head + data)

    async def begin(self, status: int, headers: tuple[tuple[bytes, bytes], ...], length: int | None) -> bool:
        """Send the head of a response of `length` bytes. False when it has no body to write (HEAD).

        With None the body is chunked, or for a client of HTTP/1.0 lasts as long as the connection.
        """
        if length is None and self._request.head.minor == 0:
            self.keep_alive = False
        head = self._head(status, headers, length)
        self._left = 0 if self._request.method == "HEAD" else length
        await self._exchange.write(head)
        return self._left != 0

    async def write(self, data: bytes, **patience: float) -> None:
        """Send a piece of the body that `begin` announced; `patience_s` as `Exchange.write` takes it."""
        await self._exchange.write(self._framed(data), **patience)

    def post(self, data: bytes) -> None:
        """Send a small piece of the body without waiting."""
        self._exchange.post(self._framed(data))

    async def end(self, data: bytes = b"") -> None:
        """Send the last of a body of unknown length, and that it is whole. Idempotent without `data`."""
        last = self._framed(data)
        if self._left is None:
            self._left = 0
            if self._request.head.minor != 0:
                last += LAST_CHUNK
        if last:
            await self._exchange.write(last)

    def _framed(self, data: bytes) -> bytes:
        if self._left is None:
            return data if self._request.head.minor == 0 else chunk(data)
        assert len(data) <= self._left
        self._left -= len(data)
        return data

    def _head(self, status: int, headers: tuple[tuple[bytes, bytes], ...], length: int | None) -> bytes:
        assert not self.begun
        self.begun = True
        self.keep_alive = self.keep_alive and self._exchange.reusable
        own = [(b"date", _date()), (b"x-request-id", self._request.id.encode("ascii"))]
        if length is not None and status not in _WITHOUT_BODY:
            own.append((b"content-length", b"%d" % length))
        elif length is None and self._request.head.minor != 0:
            own.append((b"transfer-encoding", b"chunked"))
        if not self.keep_alive:
            own.append((b"connection", b"close"))
        elif self._request.head.minor == 0:
            own.append((b"connection", b"keep-alive"))
        return response_head(status if status in REASONS else 500, (*own, *headers))


def _request_id(head: RequestHead) -> str:
    given = head.get(b"x-request-id") or b""
    return given.decode("ascii") if _REQUEST_ID.fullmatch(given) else os.urandom(12).hex()


def _parse_object(data: bytearray) -> dict[str, Any]:
    if not data:
        return {}  # what must be there will be missed by its name
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        where = f" (line {exc.lineno}, column {exc.colno})" if isinstance(exc, json.JSONDecodeError) else ""
        raise Problem("invalid", f"the body is no JSON{where}") from None
    if not isinstance(value, dict):
        raise Problem("invalid", "the body must be a JSON object")
    return value


def _pieces(members: dict[str, Any]) -> Iterator[bytes]:
    before = "{"
    for name, value in members.items():
        head = f"{before}{json.dumps(name)}: "
        if isinstance(value, Text):
            yield head.encode("ascii") + b'"'
            yield from value.pieces()
            yield b'"'
        else:
            yield (head + json.dumps(value)).encode("ascii")
        before = ", "
    yield b"}" if members else b"{}"


def _length(members: dict[str, Any]) -> int:
    return sum(map(len, _pieces(members)))


def _json_too_large() -> Problem:
    limit = JSON_BYTES_MAX >> 20
    return Problem(
        "body_too_large", f"a JSON body may have {limit} MiB; send larger files as multipart/form-data"
    )


def http_date(seconds: float) -> bytes:
    """RFC 9110 §5.6.7, whatever the locale."""
    t = time.gmtime(seconds)
    text = f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year:04}"
    return f"{text} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT".encode("ascii")


_now: tuple[int, bytes] = (0, b"")


def _date() -> bytes:
    global _now
    second = int(time.time())
    if _now[0] != second:
        _now = (second, http_date(second))
    return _now[1]


def rfc3339(seconds: float) -> str:
    """UTC, to the microsecond."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{micros:06}Z"
