"""Writes docs/reference/{http-api,problems,settings}.md from code. `--check`: only say whether one differs."""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from agentcube.errors import BY_CODE
from agentcube.manager.app import build_app, document
from agentcube.manager.manager import Service
from agentcube.manager.settings import ManagerSettings
from agentcube.runtime.keys import RsaVerifier
from agentcube.wire.names import PROBLEM_BASE

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
MADE = "<!-- Made by tools/api_pages.py. Do not edit: run `make docs`. -->\n\n"

IN_A_SESSION = """\
## Inside a session

The Router passes these on to the session's PicoD. The same calls are reached as `/api/…` below a CodeInterpreter's
invocations path, which is what the Go system's clients use.

| call | in | out |
|---|---|---|
| `POST /v1/sessions/{id}/execute` | `{"command": [argv…], "timeout"?: "60s", "working_dir"?, "env"?, "stdin"? or "stdin_base64"?, "encoding"?: "base64"}` | `{"stdout", "stderr", "exit_code", "duration", "start_time", "end_time", "stdout_truncated", "stderr_truncated"}`; with `encoding: base64` `stdout_base64` and `stderr_base64` instead of the texts. A fresh process per call. Exit code 124: timeout, the whole process tree is dead; 127: no such program; 128+n: ended by signal n |
| `POST /v1/sessions/{id}/files` | `{"path", "content": base64, "mode"?: "0644"}`, or multipart `path`, `mode`, `file` | `{"path", "size", "mode", "modified"}`; no half file is ever visible |
| `GET /v1/sessions/{id}/files?path=DIR` | | `{"files": [{"name", "size", "modified", "mode", "is_dir"}]}` |
| `GET /v1/sessions/{id}/files/{path}` | `Range` | the bytes |
| `GET /v1/sessions/{id}/logs` | `stream=stdout\\|stderr\\|both`, `tail_bytes` | what the command of an AgentRuntime wrote last, up to 1 MiB per stream |

Paths are relative to the workspace; absolute ones start there too, and neither `..` nor links lead out of it.

## Invocations

`ANY /v1/namespaces/{namespace}/{agent-runtimes|code-interpreters}/{name}/invocations/{path}` goes to the session named by
the header `x-agentcube-session-id`; without that header a session is created first. The answer carries the header
always, also when the sandbox failed. `{path}` is matched to the longest `pathPrefix` among the template's ports and
passed on unchanged, with its query, as are method, body, streams and upgraded connections. Answers that the Router made
itself carry `agentcube-error: router`.
"""


def http_api() -> str:
    """Every route of the OpenAPI document, by tag."""
    api = document(build_app(cast(Service, None), RsaVerifier(()), ManagerSettings()))
    rows: dict[str, list[str]] = {}
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            rows.setdefault(operation["tags"][0], []).append(_row(method.upper(), path, operation))
    text = (
        MADE
        + "# HTTP API\n\nOne address serves everything: the Router passes management calls on. The full document, "
    )
    text += "with every field, is at `/openapi.json`\nof a running server. Errors are [problems](problems.md). Credentials: "
    text += "`Authorization: Bearer <API key>`.\n"
    for tag, lines in rows.items():
        text += f"\n## {tag}\n\n| call | | answers |\n|---|---|---|\n" + "".join(lines)
    return text + "\n" + IN_A_SESSION


def _row(method: str, path: str, operation: dict[str, Any]) -> str:
    summary = " ".join(f"{operation['summary']}. {operation.get('description', '')}".split()).replace(
        "|", "\\|"
    )
    answers = ", ".join(sorted(operation["responses"]))
    return f"| `{method} {path}` | {summary} | {answers} |\n"


def problems() -> str:
    """Every error class with its code and status."""
    text = (
        MADE
        + "# Problems\n\nErrors are `application/problem+json` (RFC 9457) with `type`, `title`, `status`, "
    )
    text += "`detail`, `instance`, `code`, `retryable`,\n`request_id`, and `error` (the same as `detail`, for older clients). "
    text += f"`type` is `{PROBLEM_BASE}<code>` with dashes.\n`code` is the contract and is never renamed. "
    text += "Where something is retryable, `Retry-After` says when.\n\n"
    text += "| code | status | retryable | meaning | Python class |\n|---|---|---|---|---|\n"
    for code, kind in sorted(BY_CODE.items(), key=lambda item: (item[1].status, item[0])):
        meaning = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        text += f"| `{code}` | {kind.status} | {'yes' if kind.retryable else 'no'} | {meaning} | `{kind.__name__}` |\n"
    return text


def settings() -> str:
    """The manager's and the Router's settings, with where their numbers come from."""
    text = (
        MADE
        + "# Settings\n\nOn one machine the flags of [`agentcube up`](cli.md) are what people set; the rest has these "
    )
    text += "values. Times are seconds.\n\n## Workload Manager\n\nAlso from the environment, as `AGENTCUBE_MANAGER_<NAME>`.\n\n"
    text += "| setting | default | why |\n|---|---|---|\n"
    for name, field in ManagerSettings.model_fields.items():
        text += f"| `{name}` | {field.default} | {field.description} |\n"
    text += "\n## Router\n\n| setting | default | why |\n|---|---|---|\n"
    for name, default, why in _router_settings():
        text += f"| `{name}` | {default} | {why} |\n"
    return text


def _router_settings() -> Iterator[tuple[str, str, str]]:
    """Fields of RouterSettings; the reason is the comment beside or within the value."""
    source = (ROOT / "src" / "agentcube" / "router" / "settings.py").read_text()
    fields = re.compile(r"^    (\w+): \w+ = ((?:\((?:.|\n)*?^    \))|[^\n]*)(?:\n|$)", re.MULTILINE)
    for name, value in fields.findall(source):
        pieces = list(tokenize.generate_tokens(io.StringIO(value).readline))
        why = " ".join(t.string.lstrip("# ") for t in pieces if t.type == tokenize.COMMENT)
        shown = " ".join(
            t.string for t in pieces if t.type in (tokenize.NUMBER, tokenize.OP, tokenize.NAME)
        ).strip("() ")
        yield name, shown, why


def main() -> int:
    stale = []
    for name, make in (("http-api", http_api), ("problems", problems), ("settings", settings)):
        page = PAGES / f"{name}.md"
        text = make()
        if page.exists() and page.read_text() == text:
            continue
        stale.append(page.name)
        if "--check" not in sys.argv:
            page.write_text(text)
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run `make docs`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
