"""Header names, paths and media types. Standard library only, so that the SDK imports it for free."""

from __future__ import annotations

SESSION_HEADER = "x-agentcube-session-id"
REQUEST_ID_HEADER = "x-request-id"
ERROR_HEADER = "agentcube-error"  # `router` on answers the Router made itself
IDEMPOTENCY_HEADER = "idempotency-key"
KEY_CHARS_MAX = 255
"""Of an idempotency key: printable ASCII."""
PROBLEM_TYPE = "application/problem+json"
PROBLEM_BASE = "https://agentcube.dev/problems/"

GROUP = "runtime.agentcube.volcano.sh"
API_VERSION = f"{GROUP}/v1alpha1"

PLURALS = {"AgentRuntime": "agent-runtimes", "CodeInterpreter": "code-interpreters"}
KINDS = {plural: kind for kind, plural in PLURALS.items()}

SHARE_PARAMETER = "agentcube-share"
"""Query parameter that brings a share link's token to a port's own host, and name of the cookie that it becomes."""

PORTS_DOMAIN = "localhost"
"""Below which each exposed port has a host of its own, unless told otherwise: browsers take it for this machine."""

BUILT_IN_NAMESPACE = "default"
BUILT_IN_INTERPRETER = "my-interpreter"

SANDBOX_CALLS = ("execute", "files", "fs", "kernels", "logs", "processes")
"""`/v1/sessions/{id}/<call>…` goes to the session's PicoD as `/api/<call>…`; the rest to the manager."""
