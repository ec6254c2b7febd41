"""`/api/processes` over HTTP: what a client asks for, checked, and what it is told."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import signal
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Callable

from agentcube.picod import fields
from agentcube.picod.config import arguments
from agentcube.picod.events import EventStream
from agentcube.picod.messages import Request, Response
from agentcube.picod.problems import Problem
from agentcube.picod.process_life import Order, Process
from agentcube.picod.process_stream import ProcessStream
from agentcube.picod.process_table import ProcessTable
from agentcube.picod.routing import Access, Route
from agentcube.picod.terminal import SIDE_MAX, Size

TIMEOUT_MAX_S = 24 * 3600.0
GRACE_MAX_S = 3600.0
WAIT_S = 30.0
WAIT_MAX_S = 1800.0  # below the hour in which the Router wants a first byte
INPUT_BYTES_MAX = 24 * 1024 * 1024  # more goes to its standard input, in as many requests as it takes
LIST_MAX = 1000
_SIZE = Size(80, 24)
_SETTLE_S = 1.0  # a little longer than late output may take

_FIELDS = frozenset(
    (
        *("command", "shell", "working_dir", "env", "user", "stdin", "input", "input_base64", "pty"),
        *("timeout", "background", "grace"),
    )
)
_SHELLS = ("/bin/bash", "/usr/bin/bash", "/usr/local/bin/bash")
_KEY = re.compile(rb"[!-~]{1,255}")
_LARGE = 64 * 1024  # what is longer is decoded and hashed in a worker thread


class ProcessRoutes:
    """The handlers. `uid` is the user's; `environment` gives what every process has of its own accord."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        table: ProcessTable,
        uid: int,
        environment: Callable[[], Mapping[str, str]],
    ) -> None:
        self._loop = loop
        self._table = table
        self._uid = uid
        self._environment = environment

    def rows(self) -> tuple[Route, ...]:
        """What is served here."""
        one = "/api/processes/{id}"
        return (
            Route("POST", "/api/processes", Access.SESSION, self.start),
            Route("GET", "/api/processes", Access.SESSION, self.list),
            Route("GET", one, Access.SESSION, self.get),
            Route("DELETE", one, Access.SESSION, self.delete),
            Route("GET", one + "/output", Access.SESSION, self.output),
            Route("GET", one + "/wait", Access.SESSION, self.wait),
            Route("POST", one + "/stdin", Access.SESSION, self.stdin),
            Route("POST", one + "/signal", Access.SESSION, self.signal),
            Route("POST", one + "/resize", Access.SESSION, self.resize),
        )

    def _process(self, request: Request) -> Process:
        return self._table.get(request.params["id"])

    # Starting and streaming

    async def start(self, request: Request, response: Response) -> None:
        """`POST /api/processes`: a process in the background, or one whose output is the answer."""
        as_base64 = _as_base64(request.query())
        key = idempotency_key(request)
        body = await request.json()
        digest = b"" if key is None else await self._aside(body_digest, body)
        order = await self._aside(self._order, body)
        process = None if key is None else self._table.find_key(key, digest)
        fresh = process is None
        if process is None:
            process = self._table.start(
                order, self._environment(), key=key, digest=digest, fed=request.hand_over()
            )
        else:
            request.close()
        if order.background:
            await self._table.begun(process)
            location = (b"location", b"processes/" + process.id.encode("ascii"))
            await response.json(process.document(), 201 if fresh else 200, (location,))
        else:
            # Kept from the first byte that is: a client that asks again may have got nothing.
            await self._stream(request, response, process, {}, as_base64=as_base64)

    async def _aside(self, work: Callable[[dict[str, Any]], Any], body: dict[str, Any]) -> Any:
        """`work` on a body, beside the event loop where that takes long."""
        if sum(len(value) for value in body.values() if isinstance(value, str)) <= _LARGE:
            return work(body)
        return await self._loop.run_in_executor(None, work, body)

    def _order(self, body: dict[str, Any]) -> Order:
        fields.only(body, _FIELDS)
        argv, shell = _command(body)
        self._check_user(body.get("user"))
        size = None if body.get("pty") is None else _size(body["pty"])
        data = _input(body)
        stdin = body.get("stdin", "closed" if size is None or data is not None else "open")
        if stdin not in ("closed", "open"):
            raise Problem("invalid", "stdin must be closed or open; what it shall read stands in input")
        if data is not None and stdin == "open":
            raise Problem("invalid", "give input, after which standard input is closed, or leave it open")
        if size is not None and data is None and stdin == "closed":
            raise Problem("invalid", "standard input of a terminal is open")
        timeout, background = body.get("timeout"), fields.flag(body, "background")
        grace_s = fields.duration("grace", body.get("grace", "0s"), GRACE_MAX_S, zero=True)
        if background and grace_s:
            raise Problem("invalid", "grace is for processes that depend on their client; this one does not")
        return Order(
            argv=argv,
            env=fields.environment(body),
            shell=shell,
            working_dir=fields.text(body, "working_dir"),
            stdin_open=stdin == "open",
            input=data,
            size=size,
            timeout_s=None if timeout is None else fields.duration("timeout", timeout, TIMEOUT_MAX_S),
            background=background,
            grace_s=grace_s,
        )

    def _check_user(self, user: Any) -> None:
        if user is not None and (
            isinstance(user, bool) or user not in ("sandbox", self._uid, str(self._uid))
        ):
            raise Problem("invalid", f"everything here runs as the user sandbox (uid {self._uid})")

    async def output(self, request: Request, response: Response) -> None:
        """`GET …/output`: attach to a process, from given offsets on."""
        process, query = self._process(request), request.query()
        positions = {
            name: fields.number(query, name, 0) for name in process.outputs if query.get(name) is not None
        }
        for name, position in positions.items():
            if position > process.outputs[name].end:
                end = process.outputs[name].end
                raise Problem("invalid", f"{name}={position} is beyond its end, which is at {end}")
        follow = fields.choice(query, "follow", ("true", "false")) == "true"
        await self._stream(request, response, process, positions, as_base64=_as_base64(query), follow=follow)

    async def _stream(
        self,
        request: Request,
        response: Response,
        process: Process,
        positions: dict[str, int],
        *,
        as_base64: bool,
        follow: bool = True,
    ) -> None:
        """Stream from `positions` on, or from what is kept. Who follows a foreground process is its reader."""
        reader = None if process.background or not follow else self._table.attach(process)
        try:
            await self._table.begun(process)
            if reader is not None and process.grace_s:
                for name, position in positions.items():
                    process.outputs[name].drop(position)  # what is before it is confirmed
            begin = {name: positions.get(name, 0) for name in process.outputs}
            events = await EventStream.open(request, response)
            stream = ProcessStream(process, events, begin, as_base64=as_base64, reader=reader)
            await stream.run(follow=follow)
        finally:
            if reader is not None:
                self._table.detach(process, reader)

    # Looking

    async def list(self, request: Request, response: Response) -> None:
        """`GET /api/processes`: in the order of their start."""
        query = request.query()
        limit = fields.number(query, "limit", LIST_MAX)
        if not 1 <= limit <= LIST_MAX:
            raise Problem("invalid", f"limit must be 1 to {LIST_MAX}")
        found, more = self._table.list(fields.number(query, "cursor", 0), limit)
        members: dict[str, Any] = {"processes": [process.document() for process in found]}
        if more:
            members["next_cursor"] = str(found[-1].number)
        await response.json(members)

    async def get(self, request: Request, response: Response) -> None:
        """`GET …/{id}`."""
        await response.json(self._process(request).document())

    async def wait(self, request: Request, response: Response) -> None:
        """`GET …/wait`: the process once it has ended, or as it is when the time is up."""
        process, text = self._process(request), request.query().get("timeout")
        timeout_s = WAIT_S if text is None else fields.duration("timeout", text, WAIT_MAX_S, zero=True)
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.ended.wait(), timeout_s)
            await asyncio.wait_for(process.settled.wait(), _SETTLE_S)  # unless its reader is slow
        await response.json(process.document())

    # Acting

    async def stdin(self, request: Request, response: Response) -> None:
        """`POST …/stdin`: the body is written as the program takes it."""
        process, query = self._process(request), request.query()
        offset = None if query.get("offset") is None else fields.number(query, "offset", 0)
        close = fields.choice(query, "close", ("false", "true")) == "true"
        if process.input is None or not process.takes_input:
            raise Problem("stdin_closed", "the process was started without an open standard input")
        whole = await process.input.write(request.body, offset, close=close)
        members: dict[str, Any] = {"offset": process.input.accepted}
        if not whole:
            members["blocked"] = True
        await response.json(members)

    async def signal(self, request: Request, response: Response) -> None:
        """`POST …/signal`."""
        process, body = self._process(request), await request.json()
        fields.only(body, ("signal", "tree"))
        number, tree = _signal(body.get("signal")), fields.flag(body, "tree")
        self._table.signal(process, number, tree=tree)
        await response.json(process.document())

    async def resize(self, request: Request, response: Response) -> None:
        """`POST …/resize`."""
        process, body = self._process(request), await request.json()
        if process.terminal is None:
            raise Problem("not_a_terminal", "the process was started without pty")
        if process.exit is not None:
            raise Problem("process_ended", "the process has ended")
        process.terminal.resize(_size(body, process.terminal.size))
        await response.json(process.document())

    async def delete(self, request: Request, response: Response) -> None:
        """`DELETE …/{id}`."""
        await self._table.delete(self._process(request))
        await response.empty()


def _as_base64(query: dict[str, str]) -> bool:
    return fields.choice(query, "encoding", ("utf-8", "base64")) == "base64"


def idempotency_key(request: Request) -> str | None:
    """The request's Idempotency-Key. Raises Problem `invalid`."""
    key = request.head.get(b"idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise Problem("invalid", "Idempotency-Key must have 1 to 255 printable ASCII characters")
    return key.decode("ascii")


def body_digest(body: dict[str, Any]) -> bytes:
    """What two bodies that say the same have in common."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode("ascii")).digest()


def _command(body: dict[str, Any]) -> tuple[tuple[str, ...], str | None]:
    if ("command" in body) == ("shell" in body):
        raise Problem("invalid", "give command, a list of texts, or shell, a line for the shell")
    if "shell" in body:
        line = fields.text(body, "shell")
        bash = next((path for path in _SHELLS if os.access(path, os.X_OK)), None)
        return (bash or "/bin/sh", "-c", line), line
    try:
        return arguments("command", body["command"]), None
    except ValueError as exc:
        raise Problem("invalid", str(exc)) from None


def _input(body: dict[str, Any]) -> bytes | None:
    text, encoded = body.get("input"), body.get("input_base64")
    if text is None and encoded is None:
        return None
    if text is not None and encoded is not None:
        raise Problem("invalid", "give input or input_base64, not both")
    if encoded is not None:
        data = fields.from_base64("input_base64", encoded)
    elif isinstance(text, str):
        data = text.encode("utf-8", "surrogatepass")
    else:
        raise Problem("invalid", "input must be a text")
    if len(data) > INPUT_BYTES_MAX:
        raise Problem("body_too_large", f"input may have {INPUT_BYTES_MAX >> 20} MiB; write more to stdin")
    return data


def _size(value: Any, before: Size = _SIZE) -> Size:
    """A terminal's size; a side that is not given stays as it was."""
    if not isinstance(value, dict):
        raise Problem("invalid", 'a terminal has a size, such as {"cols": 80, "rows": 24}')
    fields.only(value, ("cols", "rows"))
    cols, rows = value.get("cols"), value.get("rows")
    sides = [before.cols if cols is None else cols, before.rows if rows is None else rows]
    for side in sides:
        if not isinstance(side, int) or isinstance(side, bool) or not 1 <= side <= SIDE_MAX:
            raise Problem("invalid", f"cols and rows of a terminal must be 1 to {SIDE_MAX}")
    return Size(*sides)


def _signal(value: Any) -> int:
    """A signal's number from `SIGINT`, `INT` or 2."""
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value < signal.NSIG:
        return value
    if isinstance(value, str):
        name = value.upper()
        for known in signal.Signals:
            if name in (known.name, known.name[3:]):
                return int(known)
    raise Problem("invalid", f"signal must be a name such as SIGINT, or a number from 1 to {signal.NSIG - 1}")
