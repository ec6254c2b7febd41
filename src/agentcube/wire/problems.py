"""Problem documents (RFC 9457) as a body, and errors that point at fields."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from agentcube.errors import Invalid


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One field that is wrong. `pointer` is a JSON pointer (RFC 6901) into the body, "" for all of it."""

    pointer: str
    message: str


class InvalidFields(Invalid):
    """A body with fields that are wrong. `detail` names the first ones; `fields` has them, at most 50."""

    def __init__(self, fields: Iterable[FieldProblem], *, what: str = "the request") -> None:
        self.fields = tuple(fields)[:50]
        shown = "; ".join(f"{f.pointer or 'the body'}: {f.message}" for f in self.fields[:3])
        more = f"; and {len(self.fields) - 3} more" if len(self.fields) > 3 else ""
        super().__init__(f"{what} is not valid: {shown}{more}")

    @classmethod
    def from_pydantic(
        cls, exc: ValidationError, *, what: str = "the request", under: str = ""
    ) -> InvalidFields:
        """From a validation of a value that stands at pointer `under` in the body."""
        return cls(fields_of(exc.errors(include_url=False, include_input=False), under=under), what=what)


def fields_of(errors: Sequence[Any], *, under: str = "") -> list[FieldProblem]:
    """Pydantic's error list as field problems."""
    return [FieldProblem(under + pointer(e["loc"]), _message(e)) for e in errors]


def pointer(loc: Iterable[str | int]) -> str:
    """A JSON pointer from path segments; pydantic's own markers for unions are left out."""
    parts = [
        str(p) for p in loc if not (isinstance(p, str) and (p.endswith("]") or p.startswith("function-")))
    ]
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    if error["type"] == "missing":
        return "is required"
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]


class FieldProblemBody(BaseModel):
    """One wrong field."""

    pointer: str = Field(description="JSON pointer into the request's body.")
    message: str


class Problem(BaseModel):
    """What every error answers, as `application/problem+json`."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(examples=["https://agentcube.dev/problems/session-not-found"])
    title: str
    status: int
    detail: str
    instance: str = Field(description="The request's path.")
    code: str = Field(description="The contract: stable, machine-readable.", examples=["session_not_found"])
    retryable: bool
    request_id: str
    error: str = Field(description="Same as `detail`, for clients of the Go system.")
    errors: list[FieldProblemBody] | None = None
