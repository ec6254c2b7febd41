"""The calls into a session as a part of an OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from agentcube.errors import BY_CODE
from agentcube.wire.inside import commands, files, kernels, processes
from agentcube.wire.inside.call import NDJSON, SSE, Call, Content
from agentcube.wire.names import PROBLEM_TYPE

CALLS: tuple[Call, ...] = (*commands.CALLS, *processes.CALLS, *files.CALLS, *kernels.CALLS)

SESSION_PATH = "/v1/sessions/{id}"
_REFERENCE = "#/components/schemas/"
_ALWAYS = ("unauthenticated", "session_not_found", "sandbox_unreachable")
_ANSWERED = {200: "Done.", 201: "Made.", 204: "Done.", 206: "That range.", 304: "You have it."}


def paths() -> dict[str, dict[str, Any]]:
    """Operations by path and method."""
    found: dict[str, dict[str, Any]] = {}
    for call in CALLS:
        path = SESSION_PATH + call.path.replace("*}", "}")
        found.setdefault(path, {})[call.method.lower()] = _operation(call)
    return found


def schemas() -> dict[str, Any]:
    """The schemas of all bodies and events, by name."""
    found: dict[str, Any] = {}
    for model in models():
        schema = model.model_json_schema(ref_template=_REFERENCE + "{model}")
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found


def models() -> Iterator[type[BaseModel]]:
    """Every body and event."""
    for call in CALLS:
        for content in (call.body, *call.answers.values(), call.events):
            yield from models_of(content)


def models_of(content: Content) -> tuple[type[BaseModel], ...]:
    """The models that a body may be."""
    if isinstance(content, tuple):
        return content
    return (content,) if isinstance(content, type) else ()


def _operation(call: Call) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [call.tag],
        "summary": call.summary,
        "operationId": f"{call.method.lower()}_{'_'.join(_words(call.path))}",
        "parameters": [*_path_parameters(call), *_parameters(call)],
        "responses": {**_answers(call), **_problems(call)},
    }
    if call.description:
        operation["description"] = call.description
    if call.body is not None:
        operation["requestBody"] = {"required": True, "content": _content(call.body)}
    return operation


def _words(path: str) -> list[str]:
    return [segment.strip("{}*") for segment in path.split("/") if segment]


def _path_parameters(call: Call) -> Iterator[dict[str, Any]]:
    yield {
        "name": "id",
        "in": "path",
        "required": True,
        "schema": {"type": "string"},
        "description": "The session.",
    }
    for segment in call.path.split("/"):
        if segment.startswith("{"):
            name = segment.strip("{}*")
            said = (
                "Relative to the workspace; its slashes stay."
                if segment.endswith("*}")
                else f"The {name}'s id."
            )
            yield {
                "name": name,
                "in": "path",
                "required": True,
                "schema": {"type": "string"},
                "description": said,
            }


def _parameters(call: Call) -> Iterator[dict[str, Any]]:
    for query in call.query:
        default = f" Default: {query.default}." if query.default else ""
        yield {
            "name": query.name,
            "in": "query",
            "schema": {"type": "string"},
            "description": query.description + default,
        }
    for name, description in call.headers.items():
        yield {"name": name, "in": "header", "schema": {"type": "string"}, "description": description}


def _answers(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if call.events:
        schema = {"oneOf": [{"$ref": _REFERENCE + event.__name__} for event in call.events]}
        found["200"] = {
            "description": "Events, one a line; or server-sent events, where Accept prefers them.",
            "content": {NDJSON: {"schema": schema}, SSE: {"schema": schema}},
        }
    for status, body in call.answers.items():
        found[str(status)] = {"description": _ANSWERED[status]}
        if body is not None:
            found[str(status)]["content"] = _content(body)
    return dict(sorted(found.items()))


def _problems(call: Call) -> dict[str, Any]:
    by_status: dict[int, list[str]] = {}
    for code in (*_ALWAYS, *call.problems):
        by_status.setdefault(BY_CODE[code].status, []).append(code)
    return {
        str(status): {
            "description": ", ".join(f"`{code}`" for code in codes),
            "content": {PROBLEM_TYPE: {"schema": {"$ref": _REFERENCE + "Problem"}}},
        }
        for status, codes in sorted(by_status.items())
    }


def _content(content: Content) -> dict[str, Any]:
    if isinstance(content, str):
        text = content.startswith("text/")
        return {content: {"schema": {"type": "string"} if text else {"type": "string", "format": "binary"}}}
    references = [{"$ref": _REFERENCE + model.__name__} for model in models_of(content)]
    return {"application/json": {"schema": references[0] if len(references) == 1 else {"anyOf": references}}}
