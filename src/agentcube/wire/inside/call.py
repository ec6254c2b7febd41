"""How a call is described, and the parts that descriptions share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

NDJSON, SSE = "application/x-ndjson", "text/event-stream"
BYTES, TAR = "application/octet-stream", "application/x-tar"

Duration = Annotated[str, Field(description="Go style duration.", examples=["30s", "1m30s"])]
Time = Annotated[str, Field(description="RFC 3339.", examples=["2026-11-28T15:00:00.123456Z"])]
Environment = Annotated[
    dict[str, str], Field(description="Variables besides those of the sandbox and the session.")
]


class Asked(BaseModel):
    """A body that a client sends. Members that are not listed are refused."""

    model_config = ConfigDict(extra="forbid")


class Answered(BaseModel):
    """A body or an event that PicoD sends. Clients ignore members that a newer PicoD adds."""


Content: TypeAlias = type[BaseModel] | tuple[type[BaseModel], ...] | str | None
"""What a body is: a model, one of several, a media type, or nothing."""


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter."""

    name: str
    description: str
    default: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call. `path` is below `/v1/sessions/{id}`; a last segment in braces with a star may hold slashes.

    `events`: the answer 200 is a stream of these. `problems` are the codes beyond those that every call may have.
    """

    method: str
    path: str
    tag: str
    summary: str
    description: str = ""
    query: tuple[Query, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Content = None
    answers: Mapping[int, Content] = field(default_factory=dict)
    events: tuple[type[BaseModel], ...] = ()
    problems: tuple[str, ...] = ()


IDEMPOTENCY = {
    "Idempotency-Key": "The same key and body is the same call: it is not done twice, and its answer can be had again."
}
ENCODING = Query(
    "encoding", "utf-8: output as text, what is not UTF-8 replaced; base64: exact bytes.", "utf-8"
)


class Ping(Answered):
    """Nothing happened for 5 s. Finds clients that are gone, and keeps idle timers from firing."""

    event: Literal["ping"]


class Replaced(Answered):
    """Another reader took over; this stream is over."""

    event: Literal["replaced"]
