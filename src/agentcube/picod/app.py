"""The routes: one table, each row with who may call, and the handlers. Parse, call one thing, serialise."""

from __future__ import annotations

import base64
import binascii
import enum
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any, Callable

from agentcube.durations import format_duration, parse_duration
from agentcube.picod.binding import Binding
from agentcube.picod.command import Command
from agentcube.picod.config import Config, arguments, env_map
from agentcube.picod.exec import TIMEOUT_DEFAULT_S, TIMEOUT_MAX_S, Call, Outcome, Runner
from agentcube.picod.file_routes import FileRoutes
from agentcube.picod.messages import Request, Response, Text, rfc3339
from agentcube.picod.problems import Problem

READY_TIMEOUT_S = 10.0
READY_TIMEOUT_MAX_S = 600.0
_CALL_FIELDS = frozenset(("command", "timeout", "working_dir", "env", "stdin", "stdin_base64", "encoding"))


class Access(enum.Enum):
    """Who may call a route."""

    OPEN = "open"  # whoever reaches the socket: tells nothing of the session
    MANAGER = "manager"  # the handler checks the manager's token, which is in the body
    SESSION = "session"  # the Router's token for the bound session


@dataclass(frozen=True)
class Route:
    """One row of the table. A `path` that ends with `/` stands for everything below it."""

    method: str
    path: str
    access: Access
    handler: Callable[[Request, Response], Awaitable[None]]


class App:
    """PicoD's API. Owns nothing: it is given the parts it calls."""

    def __init__(
        self, config: Config, binding: Binding, runner: Runner, command: Command | None, files: FileRoutes
    ) -> None:
        self._config = config
        self._binding = binding
        self._runner = runner
        self._command = command
        self._begin = time.monotonic()
        self.routes = (
            Route("GET", "/health", Access.OPEN, self._health),
            Route("GET", "/ready", Access.OPEN, self._ready),
            Route("POST", "/bind", Access.MANAGER, self._bind),
            Route("POST", "/api/execute", Access.SESSION, self._execute),
            Route("GET", "/api/logs", Access.SESSION, self._logs),
            Route("POST", "/api/files", Access.SESSION, files.upload),
            Route("GET", "/api/files", Access.SESSION, files.list),
            Route("GET", "/api/files/", Access.SESSION, files.download),
        )

    async def handle(self, request: Request, response: Response) -> None:
        """Route a request, checking its access first."""
        route = self._route(request)
        if route.access is Access.SESSION:
            self._binding.admit(request.head.get(b"authorization"))
        await route.handler(request, response)

    def _route(self, request: Request) -> Route:
        path = request.path
        there = [
            route
            for route in self.routes
            if path == route.path or (route.path.endswith("/") and path.startswith(route.path))
        ]
        if not there:
            raise Problem("not_found", "PicoD has no such path")
        method = "GET" if request.method == "HEAD" else request.method
        for route in there:
            if route.method == method:
                return route
        allowed = ", ".join(route.method for route in there).encode("ascii")
        raise Problem(
            "method_not_allowed", f"{request.method} is not allowed here", headers=((b"allow", allowed),)
        )

    async def _health(self, request: Request, response: Response) -> None:
        members: dict[str, Any] = {
            "status": "ok",
            "service": "PicoD",
            "version": self._config.version,
            "uptime": format_duration(round(time.monotonic() - self._begin, 3)),
            "sandbox_id": self._config.sandbox_id,
            "bound": bool(self._binding.session_id),
        }
        if self._command is not None:
            members["command"] = self._command.state()
        await response.json(members)

    async def _ready(self, request: Request, response: Response) -> None:
        text = request.query().get("timeout")
        timeout_s = READY_TIMEOUT_S if text is None else _duration("timeout", text, READY_TIMEOUT_MAX_S)
        if self._command is not None:
            await self._command.ready(self._config.ports, timeout_s)
        await response.json({"ready": True})

    async def _bind(self, request: Request, response: Response) -> None:
        body = await request.json()
        token = body.get("token")
        if not isinstance(token, str):
            raise Problem("invalid", "token must be the manager's token, a text")
        try:
            env = _env(body)
        except ValueError as exc:
            raise Problem("invalid", str(exc)) from None
        await response.json({"session_id": self._binding.bind(token, env)})
        self._runner.prepare()

    async def _execute(self, request: Request, response: Response) -> None:
        call, as_base64 = _call(await request.json())
        env = {**self._config.env, **self._binding.env}
        outcome = await self._runner.execute(call, env)
        await response.json(_outcome(outcome, as_base64=as_base64))

    async def _logs(self, request: Request, response: Response) -> None:
        query = request.query()
        stream, tail = query.get("stream", "both"), query.get("tail_bytes")
        if self._command is None:
            raise Problem("no_command", "this sandbox runs no command of its own")
        if stream not in ("stdout", "stderr", "both"):
            raise Problem("invalid", "stream must be stdout, stderr or both")
        if tail is not None and not (tail.isascii() and tail.isdigit() and len(tail) <= 18):
            raise Problem("invalid", "tail_bytes must be a whole number")
        data = self._command.output(stream)
        if tail is not None:
            data = data[max(0, len(data) - int(tail)) :]
        await response.whole(200, ((b"content-type", b"text/plain; charset=utf-8"),), data)


def _call(body: dict[str, Any]) -> tuple[Call, bool]:
    """The call that a body of /api/execute asks for, and whether its output shall be base64."""
    unknown = sorted(set(body) - _CALL_FIELDS)
    if unknown:
        raise Problem("invalid", f"unknown field {unknown[0]!r}")
    working_dir = body.get("working_dir", "")
    if not isinstance(working_dir, str) or "\x00" in working_dir:
        raise Problem("invalid", "working_dir must be a text")
    encoding = body.get("encoding", "utf-8")
    if encoding not in ("utf-8", "base64"):
        raise Problem("invalid", "encoding must be utf-8 or base64")
    timeout = body.get("timeout")
    try:
        call = Call(
            argv=arguments("command", body.get("command")),
            timeout_s=TIMEOUT_DEFAULT_S
            if timeout in (None, "")
            else _duration("timeout", timeout, TIMEOUT_MAX_S),
            working_dir=working_dir,
            env=_env(body),
            stdin=_stdin(body),
        )
    except ValueError as exc:
        raise Problem("invalid", str(exc)) from None
    return call, encoding == "base64"


def _env(body: dict[str, Any]) -> dict[str, str]:
    env = body.get("env")
    return {} if env is None else env_map("env", env)


def _stdin(body: dict[str, Any]) -> bytes | None:
    text, encoded = body.get("stdin"), body.get("stdin_base64")
    if text is not None and encoded is not None:
        raise Problem("invalid", "give stdin or stdin_base64, not both")
    if text is not None:
        if not isinstance(text, str):
            raise Problem("invalid", "stdin must be a text")
        return text.encode("utf-8", "surrogatepass")
    if encoded is not None:
        return decode_base64("stdin_base64", encoded)
    return None


def decode_base64(name: str, value: Any) -> bytes:
    """The bytes that the member `name` holds in base64. Problem when it does not."""
    if not isinstance(value, str):
        raise Problem("invalid", f"{name} must be a text in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Problem("invalid", f"{name} is no base64") from None


def _duration(name: str, value: Any, most_s: float) -> float:
    try:
        seconds = parse_duration(value)
    except ValueError as exc:
        raise Problem("invalid", f"{name}: {exc}") from None
    if not 0 < seconds <= most_s:
        raise Problem("invalid", f"{name} must be more than 0 and at most {format_duration(most_s)}")
    return seconds


def _outcome(outcome: Outcome, *, as_base64: bool) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, head in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        members[name + "_base64" if as_base64 else name] = Text(head.content(), as_base64=as_base64)
        members[name + "_truncated"] = head.truncated
    members["exit_code"] = outcome.exit_code
    if outcome.signal is not None:
        members["signal"] = outcome.signal
    members["duration"] = round(outcome.duration_s, 6)
    members["start_time"] = rfc3339(outcome.started_at)
    members["end_time"] = rfc3339(outcome.started_at + outcome.duration_s)
    return members
