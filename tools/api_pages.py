"""Writes docs/reference/{http-api,problems,settings}.md from code. `--check`: only say whether one differs."""

from __future__ import annotations

import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel

from agentcube.errors import BY_CODE
from agentcube.manager.app import build_app, document
from agentcube.manager.manager import Service
from agentcube.manager.settings import ManagerSettings
from agentcube.runtime.keys import RsaVerifier
from agentcube.stores.redis.settings import RedisSettings
from agentcube.wire.inside.call import Call, Content
from agentcube.wire.inside.openapi import CALLS, models_of
from agentcube.wire.names import PROBLEM_BASE

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "reference"
MADE = "<!-- Made by tools/api_pages.py. Do not edit: run `make docs`. -->\n\n"

INSIDE = """# Inside a session

Below `/v1/sessions/{id}`: the Router passes these on to the session's PicoD. The same calls are reached as `/api/…` below a
CodeInterpreter's invocations path, which is what the Go system's clients use. How they go together, with examples:
[inside a session](inside-a-session.md). A `?` marks what may be left out; `= …` is what it is then.
"""

BESIDES = """## Tunnels

`GET /v1/sessions/{id}/tcp/{port}` with `Connection: Upgrade` and `Upgrade: tcp` answers `101`, and the connection is the
declared port's from there on ([how](../how-to/forward-a-port.md)). `426` without the upgrade, `404` for other ports.

## Invocations

`ANY /v1/namespaces/{namespace}/{agent-runtimes|code-interpreters}/{name}/invocations/{path}` goes to the session named by
the header `x-agentcube-session-id`; without that header a session is created first. The answer carries the header
always, also when the sandbox failed. `{path}` is matched to the longest `pathPrefix` among the template's ports and
passed on unchanged, with its query, as are method, body, streams and upgraded connections. Answers that the Router made
itself carry `agentcube-error: router`. An offer to upgrade to `h2c`, or with a body, is ignored: the request passes on without it.

The sandbox gets a token of the Router's as `Authorization`, which names the caller. A port that is declared with
`passCredentials: true` gets the caller's own instead, a key to this server: only for agents that may act as their callers.
"""


def http_api() -> str:
    """Every route of the OpenAPI document, by tag."""
    api = document(build_app(cast(Service, None), RsaVerifier(()), ManagerSettings()))
    rows: dict[str, list[str]] = {}
    inside = {call.tag for call in CALLS}
    for path, operations in api["paths"].items():
        for method, operation in operations.items():
            if operation["tags"][0] in inside:
                continue
            rows.setdefault(operation["tags"][0], []).append(_row(method.upper(), path, operation))
    text = (
        MADE
        + "# HTTP API\n\nOne address serves everything: the Router passes management calls on. The full document, "
    )
    text += "with every field, is at `/openapi.json`\nof a running server. Errors are [problems](problems.md). Credentials: "
    text += "`Authorization: Bearer <API key>`.\n"
    for tag, lines in rows.items():
        text += f"\n## {tag}\n\n| call | | answers |\n|---|---|---|\n" + "".join(lines)
    return text + "\n" + BESIDES + "\n" + INSIDE + "".join(_inside())


def _inside() -> Iterator[str]:
    """The calls into a session by tag, each with the bodies and events that it has first."""
    shown: set[str] = set()
    for tag in dict.fromkeys(call.tag for call in CALLS):
        calls = [call for call in CALLS if call.tag == tag]
        yield f"\n## {tag.removeprefix('Inside a session: ').capitalize()}\n\n| call | in | out |\n|---|---|---|\n"
        yield from map(_inside_row, calls)
        for call in calls:
            for content in (call.body, *call.answers.values(), call.events):
                for model in _with_parts(models_of(content)):
                    if model.__name__ not in shown:
                        shown.add(model.__name__)
                        yield _body(model)


def _inside_row(call: Call) -> str:
    asked = [
        f"`{query.name}{f'={query.default}' if query.default else ''}`: {query.description}"
        for query in call.query
    ]
    asked += [f"`{name}`: {description}" for name, description in call.headers.items()]
    asked += [f"body: {_shown(call.body)}"] if call.body else []
    answers = (
        [f"200 events: {', '.join(f'`{model.__name__}`' for model in call.events)}"] if call.events else []
    )
    answers += [f"{status} {_shown(content)}".strip() for status, content in call.answers.items()]
    answers += [f"{BY_CODE[code].status} `{code}`" for code in call.problems]
    what = f"{call.summary}. {call.description}".strip()
    cells = (f"`{call.method} {call.path.replace('*}', '}')}` {what}", " · ".join(asked), " · ".join(answers))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _shown(content: Content) -> str:
    if isinstance(content, str):
        return f"`{content}`"
    return " or ".join(f"`{model.__name__}`" for model in models_of(content))


def _with_parts(models: tuple[type[BaseModel], ...]) -> Iterator[type[BaseModel]]:
    """Models, each before those that its members are."""
    for model in models:
        yield model
        for field in model.model_fields.values():
            parts = (field.annotation, *get_args(field.annotation))
            yield from _with_parts(
                tuple(p for p in parts if isinstance(p, type) and issubclass(p, BaseModel))
            )


def _body(model: type[BaseModel]) -> str:
    schema = model.model_json_schema()
    text = f"\n**{model.__name__}**: {' '.join((model.__doc__ or '').split())}\n"
    for name, member in schema["properties"].items():
        mark = "" if name in schema.get("required", ()) else "?"
        default = member.get("default")
        said = f" = `{json.dumps(default)}`" if default not in (None, "") else ""
        about = f": {member['description']}" if "description" in member else ""
        text += f"- `{name}`{mark} {_type(member)}{said}{about}\n"
    return text


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return " or ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    kind = str(schema.get("type", "anything"))
    return f"list of {_type(schema['items'])}" if kind == "array" else {"string": "text"}.get(kind, kind)


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
    """The manager's, the Redis store's and the Router's settings, with where their numbers come from."""
    text = (
        MADE
        + "# Settings\n\nOn one machine the flags of [`agentcube up`](cli.md) are what people set; the rest has these "
    )
    text += "values. Times are seconds.\n\n## Workload Manager\n\nAlso from the environment, as `AGENTCUBE_MANAGER_<NAME>`.\n\n"
    text += "| setting | default | why |\n|---|---|---|\n"
    for name, field in ManagerSettings.model_fields.items():
        text += f"| `{name}` | {field.default} | {field.description} |\n"
    text += "\n## Redis store\n\nFrom the environment, as `AGENTCUBE_REDIS_<NAME>`, with `agentcube up --store URL` "
    text += "([how to](../how-to/use-redis.md)).\n\n| setting | default | why |\n|---|---|---|\n"
    for name, field in RedisSettings.model_fields.items():
        text += f"| `{name}` | {field.default} | {field.description} |\n"
    text += "\n## Router\n\nNumbers also from the environment, as `AGENTCUBE_ROUTER_<NAME>`; the rest are flags. Limits are each\n"
    text += "Router process's own.\n\n| setting | default | why |\n|---|---|---|\n"
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
            t.string
            for t in pieces
            if t.type in (tokenize.NUMBER, tokenize.OP, tokenize.NAME, tokenize.STRING)
        ).strip('()" ')
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
