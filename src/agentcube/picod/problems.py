"""What PicoD reports on purpose, and how it looks on the wire (RFC 9457 problem documents).

The codes are those of the other planes (`agentcube.errors`), spelled again: PicoD may run where
nothing but itself and the standard library exists.
"""

from __future__ import annotations

import json
from typing import Any

PROBLEM_TYPE = b"application/problem+json"
_PROBLEM_BASE = "https://agentcube.dev/problems/"

# code: (status, title, retryable)
_KNOWN: dict[str, tuple[int, str, bool]] = {
    "invalid": (400, "Invalid request", False),
    "unauthenticated": (401, "Authentication required", False),
    "forbidden": (403, "Not allowed", False),
    "not_found": (404, "Not found", False),
    "file_not_found": (404, "File not found", False),
    "process_not_found": (404, "Process not found", False),
    "kernel_not_found": (404, "Kernel not found", False),
    "no_command": (404, "No command", False),
    "method_not_allowed": (405, "Method not allowed", False),
    "request_timed_out": (408, "Request too slow", False),
    "conflict": (409, "Conflict", False),
    "stdin_closed": (409, "Standard input closed", False),
    "not_a_terminal": (409, "Not a terminal", False),
    "process_ended": (409, "Process ended", False),
    "kernel_busy": (409, "Kernel busy", True),
    "kernel_dead": (409, "Kernel dead", False),
    "kernel_exists": (409, "Kernel exists", False),
    "idempotency_conflict": (409, "Idempotency key used for something else", False),
    "file_exists": (409, "File exists", False),
    "not_empty": (409, "Directory not empty", False),
    "body_too_large": (413, "Body too large", False),
    "range_not_satisfiable": (416, "Range not satisfiable", False),
    "limit_exceeded": (429, "Limit reached", True),
    "internal": (500, "Internal error", False),
    "start_failed": (503, "Sandbox did not start", False),
    "unavailable": (503, "Unavailable", True),
    "start_timed_out": (504, "Sandbox not ready in time", True),
    "workspace_full": (507, "Workspace full", False),
}


class Problem(Exception):
    """A request that cannot be served, and why.

    `detail` is for people: it names the thing and, where there is one, the remedy; it never holds
    a token. `context` are machine-readable facts that travel in the document. `headers` go on the
    response. `status` replaces the code's own, for what the HTTP parser refuses.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int = 0,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        **context: str | int | None,
    ) -> None:
        known_status, self.title, self.retryable = _KNOWN[code]
        self.code = code
        self.status = status or known_status
        self.detail = detail
        self.context = context
        self.headers = headers
        if self.retryable and self.status in (409, 429, 503):
            self.headers += ((b"retry-after", b"1"),)
        super().__init__(detail)

    def document(self, instance: str, request_id: str) -> bytes:
        """The body: the RFC's members, ours, and `error` (= detail), which existing clients print."""
        members: dict[str, Any] = {
            **self.context,
            "type": _PROBLEM_BASE + self.code.replace("_", "-"),
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
            "code": self.code,
            "retryable": self.retryable,
            "request_id": request_id,
            "error": self.detail,
        }
        return json.dumps(members).encode("ascii")
