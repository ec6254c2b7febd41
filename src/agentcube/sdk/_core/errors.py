"""Errors that arise in the client, and how a server's problem document becomes an exception again.

`agentcube.errors` has the classes that servers raise; an answer's `code` leads back to the same class.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from agentcube.errors import (
    BY_CODE,
    AgentCubeError,
    BodyTooLarge,
    Conflict,
    Forbidden,
    Invalid,
    LimitExceeded,
    NotFound,
    SandboxTimedOut,
    SandboxUnavailable,
    Unauthenticated,
    Unavailable,
)
from agentcube.wire.names import REQUEST_ID_HEADER

if TYPE_CHECKING:
    from agentcube.sdk._core.execution import Execution

_TEXT_MAX = 300  # of a body that is no problem document: enough to recognise a proxy's page by


class InvalidArgument(Invalid, ValueError):
    """An argument cannot be right; nothing was sent."""

    code, title = "invalid_argument", "Invalid argument"


class NotConfigured(AgentCubeError, ValueError):
    """No server address is known."""

    code, status, title = "not_configured", 400, "No server address"


class ConnectFailed(AgentCubeError):
    """The server could not be reached; nothing was sent."""

    code, status, title, retryable = "connect_failed", 503, "Cannot connect", True


class ConnectionLost(AgentCubeError):
    """The connection broke after the request was sent: whether it took effect is not known."""

    code, status, title = "connection_lost", 502, "Connection lost"


class TimedOut(AgentCubeError, TimeoutError):
    """The server did not answer in time: whether the request took effect is not known."""

    code, status, title = "timed_out", 504, "No answer in time"


class TransferIncomplete(ConnectionLost):
    """A download ended early. The destination file was left as it was."""

    code, title = "transfer_incomplete", "Transfer incomplete"


class UnexpectedAnswer(AgentCubeError):
    """The server answered something that is not the AgentCube API."""

    code, status, title = "unexpected_answer", 502, "Unexpected answer"


class ClientClosed(AgentCubeError, RuntimeError):
    """The client was stopped or closed."""

    code, status, title = "client_closed", 409, "Client is closed"


class CommandExecutionError(AgentCubeError):
    """A command ended with an exit code other than 0; 124 with `timed_out`: it was killed when its time was over."""

    code, status, title = "command_failed", 500, "Command failed"

    def __init__(
        self,
        exit_code: int,
        stderr: str,
        command: str | Sequence[str] | None = None,
        timed_out: bool = False,
    ) -> None:
        self.exit_code = exit_code
        self.stderr = stderr
        self.command = command
        self.timed_out = timed_out
        how = f"exit {exit_code}, timed out" if timed_out else f"exit {exit_code}"
        super().__init__(f"Command failed ({how}): {stderr}")

    def __reduce__(self) -> tuple[type[CommandExecutionError], tuple[Any, ...]]:
        return type(self), (self.exit_code, self.stderr, self.command, self.timed_out)


class CellFailed(AgentCubeError):
    """A cell did not run to its end: `execution` has the exception, the output, and what else came of it."""

    code, status, title = "cell_failed", 500, "Cell failed"

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        error = execution.error
        why = f"{error.name}: {error.value}" if error is not None else execution.reason
        super().__init__(f"The cell ended as {execution.status}" + (f": {why}" if why else ""))

    def __reduce__(self) -> tuple[type[CellFailed], tuple[Any, ...]]:
        return type(self), (self.execution,)


class StreamReplaced(Conflict):
    """Another reader took over this stream of events; what it reads, this one does not."""

    code, title = "stream_replaced", "Another reader took over"


_BY_STATUS: dict[int, type[AgentCubeError]] = {
    400: Invalid,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: BodyTooLarge,
    422: Invalid,
    429: LimitExceeded,
    502: SandboxUnavailable,
    503: Unavailable,
    504: SandboxTimedOut,
}

_KEY_REMEDY = (
    "set AGENTCUBE_API_KEY, or pass api_key or auth_token "
    "(`agentcube up` keeps its key in the file api-key of its data directory)"
)


def error_of(status: int, headers: Mapping[str, str], body: bytes, *, what: str) -> AgentCubeError:
    """The exception that an error answer stands for.

    `what` names the operation for people ("delete session s-1"). `context` of the exception carries
    `status`, the server's `code` and `request_id` where they are known.
    """
    problem = _object(body)
    code = problem.get("code")
    known = BY_CODE.get(code) if isinstance(code, str) else None
    kind = known or _BY_STATUS.get(status) or (AgentCubeError if status >= 500 else Invalid)
    detail = f"{what}: {_detail(status, problem, body)}"
    if issubclass(kind, Unauthenticated):
        detail = f"{detail} ({_KEY_REMEDY})"
    context: dict[str, str | int] = {"status": status}
    if isinstance(code, str):
        context["code"] = code
    request_id = problem.get("request_id") or headers.get(REQUEST_ID_HEADER)
    if isinstance(request_id, str) and request_id:
        context["request_id"] = request_id
    return kind(detail, **context)


def is_retryable(status: int, body: bytes) -> bool:
    """Whether the server says that the same request may succeed later."""
    said = _object(body).get("retryable")
    return said if isinstance(said, bool) else status in (429, 503)


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _detail(status: int, problem: Mapping[str, Any], body: bytes) -> str:
    for field in ("detail", "error", "message", "title"):
        said = problem.get(field)
        if isinstance(said, str) and said:
            return said + _validation(problem.get("errors"), said)
    text = " ".join(body[: 4 * _TEXT_MAX].decode("utf-8", "replace").split())
    return f"HTTP {status}: {text[:_TEXT_MAX]}" if text else f"HTTP {status}"


def _validation(errors: object, said: str) -> str:
    """The fields that are wrong, as far as the detail has not named them."""
    if not isinstance(errors, list):
        return ""
    fields = [f"{e.get('pointer', '')}: {e.get('message', '')}" for e in errors[:5] if isinstance(e, dict)]
    new = [field for field in fields if field not in said]
    return f" ({'; '.join(new)})" if new else ""
