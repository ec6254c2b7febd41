"""The one exception hierarchy of every role but PicoD.

It knows no HTTP library and no role. `code` is the contract on the wire (RFC 9457 problem `code`)
and is never renamed; `detail` is for people and never carries internals, addresses or tokens.
"""

from __future__ import annotations

from typing import ClassVar

Context = str | int | float | bool | None


class AgentCubeError(Exception):
    """Anything that AgentCube reports on purpose.

    `detail` names the thing and, where there is one, the remedy. `context` holds machine-readable
    facts (bounded, no secrets) that travel into the problem document.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    title: ClassVar[str] = "Internal error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str = "", /, **context: Context) -> None:
        self.detail: str = detail or self.title
        self.context = context
        super().__init__(self.detail)


class Invalid(AgentCubeError):
    """The request is malformed or asks for something that cannot be."""

    code, status, title = "invalid", 400, "Invalid request"


class Denied(AgentCubeError):
    """The caller may not do this."""

    code, status, title = "denied", 403, "Denied"


class Unauthenticated(Denied):
    """No credentials, or credentials that do not verify."""

    code, status, title = "unauthenticated", 401, "Authentication required"


class Forbidden(Denied):
    """Known, but not allowed."""

    code, status, title = "forbidden", 403, "Not allowed"


class NotFound(AgentCubeError):
    """Absent, or not the caller's to know."""

    code, status, title = "not_found", 404, "Not found"


class SessionNotFound(NotFound):
    """No such session, or not the caller's."""

    code, title = "session_not_found", "Session not found"


class TemplateNotFound(NotFound):
    """No AgentRuntime or CodeInterpreter of that name in that namespace."""

    code, title = "template_not_found", "Template not found"


class FileNotFound(NotFound):
    """No such file in the session's workspace."""

    code, title = "file_not_found", "File not found"


class NoCommand(NotFound):
    """The session's template has no command, so there are no logs of one."""

    code, title = "no_command", "No command"


class ProcessNotFound(NotFound):
    """No such process in the session, or its record is no longer kept."""

    code, title = "process_not_found", "Process not found"


class KernelNotFound(NotFound):
    """No such kernel in the session, or no such execution in the kernel."""

    code, title = "kernel_not_found", "Kernel not found"


class MethodNotAllowed(AgentCubeError):
    """The path exists and does not take this method."""

    code, status, title = "method_not_allowed", 405, "Method not allowed"


class RangeNotSatisfiable(AgentCubeError):
    """The file has no such bytes."""

    code, status, title = "range_not_satisfiable", 416, "Range not satisfiable"


class RequestTimedOut(AgentCubeError):
    """The request did not arrive in time."""

    code, status, title, retryable = "request_timed_out", 408, "Request too slow", True


class WorkspaceFull(AgentCubeError):
    """The session's workspace has no room for this."""

    code, status, title = "workspace_full", 507, "Workspace full"


class Conflict(AgentCubeError):
    """The thing is not in a state that allows this."""

    code, status, title = "conflict", 409, "Conflict"


class InvalidTransition(Conflict):
    """The session's phase does not allow this."""

    code, title = "invalid_transition", "Phase does not allow this"


class StaleRevision(Conflict):
    """Someone else changed the record first; read it again."""

    code, title, retryable = "stale_revision", "Changed by someone else", True


class AlreadyExists(Conflict):
    """A record of that name or id exists."""

    code, title = "already_exists", "Already exists"


class StdinClosed(Conflict):
    """The process reads no more: its standard input was closed, or it was started without one."""

    code, title = "stdin_closed", "Standard input closed"


class NotATerminal(Conflict):
    """The process was started without a terminal, so there is none to resize."""

    code, title = "not_a_terminal", "Not a terminal"


class ProcessEnded(Conflict):
    """The process has ended: it takes neither input nor signals."""

    code, title = "process_ended", "Process ended"


class KernelBusy(Conflict):
    """The kernel executes something else; try again, wait in line, or interrupt it."""

    code, title, retryable = "kernel_busy", "Kernel busy", True


class KernelDead(Conflict):
    """The kernel has died, its variables with it; restart it."""

    code, title = "kernel_dead", "Kernel dead"


class KernelExists(Conflict):
    """A kernel of that id exists with another language."""

    code, title = "kernel_exists", "Kernel exists"


class IdempotencyConflict(Conflict):
    """The idempotency key was used with another body before."""

    code, title = "idempotency_conflict", "Idempotency key used for something else"


class FileExists(Conflict):
    """There is something at that path already."""

    code, title = "file_exists", "File exists"


class NotEmpty(Conflict):
    """The directory holds something, and deleting it was not asked to be recursive."""

    code, title = "not_empty", "Directory not empty"


class SessionBusy(Conflict):
    """Requests of the session are under way, so it stays awake."""

    code, title, retryable = "session_busy", "Session is in use", True


class SuspendUnsupported(Conflict):
    """Nothing on this machine can suspend the session's sandbox."""

    code, title = "suspend_unsupported", "Cannot suspend here"


class LimitExceeded(AgentCubeError):
    """A rate, quota or in-flight limit was reached."""

    code, status, title, retryable = "limit_exceeded", 429, "Limit reached", True


class BodyTooLarge(AgentCubeError):
    """The body is over the documented limit."""

    code, status, title = "body_too_large", 413, "Body too large"


class CapacityExhausted(AgentCubeError):
    """No room for another sandbox right now."""

    code, status, title, retryable = "capacity_exhausted", 503, "No capacity", True


class SandboxUnavailable(AgentCubeError):
    """The session's sandbox cannot answer."""

    code, status, title, retryable = "sandbox_unavailable", 502, "Sandbox unavailable", True


class StartFailed(SandboxUnavailable):
    """The sandbox could not be started; `detail` says which step."""

    code, title, retryable = "start_failed", "Sandbox did not start", False


class StartTimedOut(SandboxUnavailable):
    """The sandbox was not ready within its deadline."""

    code, status, title = "start_timed_out", 504, "Sandbox not ready in time"


class Unreachable(SandboxUnavailable):
    """The sandbox refused or dropped the connection."""

    code, title = "sandbox_unreachable", "Sandbox unreachable"


class SandboxTimedOut(SandboxUnavailable):
    """The sandbox did not answer in time."""

    code, status, title, retryable = "sandbox_timed_out", 504, "Sandbox too slow", False


class SessionFailed(AgentCubeError):
    """The session ended in Failed; `detail` carries its reason."""

    code, status, title = "session_failed", 502, "Session failed"


class WakeFailed(AgentCubeError):
    """The session sleeps and could not be woken. It is kept as it is; a later request tries again."""

    code, status, title, retryable = "wake_failed", 503, "Session did not wake", True


class SuspendFailed(AgentCubeError):
    """The session could not be suspended. It is awake."""

    code, status, title, retryable = "suspend_failed", 503, "Session was not suspended", True


class DriverFailed(AgentCubeError):
    """A driver operation failed; `detail` names the operation and the step."""

    code, status, title = "driver_failed", 500, "Driver failed"


class StoreFailed(AgentCubeError):
    """The session store cannot be read or written."""

    code, status, title, retryable = "store_failed", 503, "Store unavailable", True


class Unavailable(AgentCubeError):
    """Draining, starting, or a dependency is down."""

    code, status, title, retryable = "unavailable", 503, "Unavailable", True


def _classes(root: type[AgentCubeError]) -> list[type[AgentCubeError]]:
    return [root, *(c for sub in root.__subclasses__() for c in _classes(sub))]


BY_CODE: dict[str, type[AgentCubeError]] = {c.code: c for c in _classes(AgentCubeError)}
"""Every error class by its wire `code`: how a client gets back the class the server raised."""
