"""A session's phase changes as a stream: server-sent events (WHATWG HTML §9.2), or JSON, an object a line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Self

from pydantic import BaseModel
from starlette.responses import StreamingResponse

from agentcube.errors import StoreFailed
from agentcube.manager.events import Gap, Told
from agentcube.model.session import PhaseChange
from agentcube.wire.bodies import GapEvent, PhaseEvent, PingEvent

NDJSON = "application/x-ndjson"

_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
_RETRY = "retry: 1000\n\n"  # ms until a client comes back by itself
_Body = PhaseEvent | GapEvent | PingEvent


class EventStream(StreamingResponse):
    """The response. Make one with `begin`."""

    media_type = "text/event-stream"

    @classmethod
    async def begin(cls, told: AsyncIterator[Told], *, accept: str) -> Self:
        """The response that tells of `told`, as lines where `accept` names those. Raises what `told` raises at once."""
        await anext(told)
        if NDJSON in accept.lower():
            return cls(_written(told, "", _line), headers=_HEADERS, media_type=NDJSON)
        return cls(_written(told, _RETRY, _event), headers=_HEADERS)


async def _written(told: AsyncIterator[Told], first: str, form: Callable[[_Body], str]) -> AsyncIterator[str]:
    yield first
    try:
        async for item in told:
            yield form(_body(item))
    except StoreFailed:
        return  # as when the server stops: who wants to know more asks again


def _body(item: Told) -> _Body:
    match item:
        case PhaseChange(seq=seq):
            return PhaseEvent(
                seq=seq, phase=item.phase.value, reason=item.reason, message=item.message, at=item.at
            )
        case Gap(first, last):
            return GapEvent.model_validate({"from": first, "to": last})
        case None:
            return PingEvent()


def _line(body: BaseModel) -> str:
    return body.model_dump_json(by_alias=True) + "\n"


def _event(body: _Body) -> str:
    id = f"id: {body.seq}\n" if isinstance(body, PhaseEvent) else ""
    return f"{id}event: {body.event}\ndata: {_line(body)}\n"
