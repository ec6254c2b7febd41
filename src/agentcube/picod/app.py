"""PicoD's API: its own routes and handlers beside those of files and processes, and who may call them."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from agentcube.durations import format_duration
from agentcube.picod import fields
from agentcube.picod.binding import Binding
from agentcube.picod.command import Command
from agentcube.picod.config import Config, arguments
from agentcube.picod.exec import TIMEOUT_DEFAULT_S, TIMEOUT_MAX_S, Call, Outcome, Runner
from agentcube.picod.messages import Request, Response, Text, rfc3339
from agentcube.picod.problems import Problem
from agentcube.picod.routing import Access, Route, Table

READY_TIMEOUT_S = 10.0
READY_TIMEOUT_MAX_S = 600.0
_CALL_FIELDS = frozenset(("command", "timeout", "working_dir", "env", "stdin", "stdin_base64", "encoding"))


class App:
    """PicoD's API. Owns nothing: it is given the parts it calls, and the `rows` that other parts serve."""

    def __init__(
        self,
        config: Config,
        binding: Binding,
        runner: Runner,
        command: Command | None,
        rows: Iterable[Route],
    ) -> None:
        self._config = config
        self._binding = binding
        self._runner = runner
        self._command = command
        self._begin = time.monotonic()
        self.table = Table(
            (
                Route("GET", "/health", Access.OPEN, self._health),
                Route("GET", "/ready", Access.OPEN, self._ready),
                Route("POST", "/bind", Access.MANAGER, self._bind),
                Route("POST", "/api/execute", Access.SESSION, self._execute),
                Route("GET", "/api/logs", Access.SESSION, self._logs),
                *rows,
            )
        )

    async def handle(self, request: Request, response: Response) -> None:
        """Route a request, checking its access first."""
        route, request.params = self.table.find(request.method, request.path)
        if route.access is Access.SESSION:
            self._binding.admit(request.head.get(b"authorization"))
        await route.handler(request, response)

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
        timeout_s = READY_TIMEOUT_S if text is None else fields.duration("timeout", text, READY_TIMEOUT_MAX_S)
        if self._command is not None:
            await self._command.ready(self._config.ports, timeout_s)
        await response.json({"ready": True})

    async def _bind(self, request: Request, response: Response) -> None:
        body = await request.json()
        token = body.get("token")
        if not isinstance(token, str):
            raise Problem("invalid", "token must be the manager's token, a text")
        await response.json({"session_id": self._binding.bind(token, fields.environment(body))})
        self._runner.prepare()

    async def _execute(self, request: Request, response: Response) -> None:
        call, as_base64 = _call(await request.json())
        env = {**self._config.env, **self._binding.env}
        outcome = await self._runner.execute(call, env)
        await response.json(_outcome(outcome, as_base64=as_base64))

    async def _logs(self, request: Request, response: Response) -> None:
        query = request.query()
        if self._command is None:
            raise Problem("no_command", "this sandbox runs no command of its own")
        stream = fields.choice(query, "stream", ("both", "stdout", "stderr"))
        data = self._command.output(stream)
        data = data[max(0, len(data) - fields.number(query, "tail_bytes", len(data))) :]
        await response.whole(200, ((b"content-type", b"text/plain; charset=utf-8"),), data)


def _call(body: dict[str, Any]) -> tuple[Call, bool]:
    """The call that a body of /api/execute asks for, and whether its output shall be base64."""
    fields.only(body, _CALL_FIELDS)
    encoding = body.get("encoding", "utf-8")
    if encoding not in ("utf-8", "base64"):
        raise Problem("invalid", "encoding must be utf-8 or base64")
    timeout = body.get("timeout")
    try:
        argv = arguments("command", body.get("command"))
    except ValueError as exc:
        raise Problem("invalid", str(exc)) from None
    call = Call(
        argv=argv,
        timeout_s=TIMEOUT_DEFAULT_S
        if timeout in (None, "")
        else fields.duration("timeout", timeout, TIMEOUT_MAX_S),
        working_dir=fields.text(body, "working_dir"),
        env=fields.environment(body),
        stdin=_stdin(body),
    )
    return call, encoding == "base64"


def _stdin(body: dict[str, Any]) -> bytes | None:
    text, encoded = body.get("stdin"), body.get("stdin_base64")
    if text is not None and encoded is not None:
        raise Problem("invalid", "give stdin or stdin_base64, not both")
    if text is not None:
        if not isinstance(text, str):
            raise Problem("invalid", "stdin must be a text")
        return text.encode("utf-8", "surrogatepass")
    if encoded is not None:
        return fields.from_base64("stdin_base64", encoded)
    return None


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
