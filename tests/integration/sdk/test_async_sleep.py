"""Sleep, and the phases of sessions as they come."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from agentcube import AsyncAgentCube, UnexpectedAnswer
from agentcube.errors import SessionBusy, SessionNotFound, SuspendUnsupported, WakeFailed
from agentcube.events import PhaseChanged
from tests.integration.sdk.wire_answers import problem, stream
from tests.integration.sdk.wire_server import WireServer

# [async
pytestmark = pytest.mark.anyio
# async]

EVENTS = "/v1/sessions/[^/]+/events"
AT = "2026-11-21T15:00:00.5Z"


def phase(seq: int, name: str, **more: Any) -> dict[str, Any]:
    return {"event": "phase", "seq": seq, "phase": name, "at": AT, "reason": "", "message": "", **more}


async def test_sessions_are_put_to_sleep_and_woken(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        session = await cube.sessions.create()
        asleep = await cube.sessions.suspend(session.id)
        assert (asleep.phase, asleep.sleep) == ("Paused", "frozen")
        awake = await cube.sessions.resume(session.id)
        assert (awake.phase, awake.sleep, awake.stays_awake) == ("Ready", "", "")
        server.sessions[session.id] |= {"stays_awake": "no freezer", "phase_since": AT}
        told = await cube.sessions.get(session.id)
        assert told.stays_awake == "no freezer"
        assert told.phase_since == datetime(2026, 11, 21, 15, 0, 0, 500000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("call", "status", "error"),
    [
        ("suspend", 409, SessionBusy),
        ("suspend", 409, SuspendUnsupported),
        ("resume", 503, WakeFailed),
        ("resume", 404, SessionNotFound),
    ],
)
async def test_what_keeps_a_session_from_it_is_an_exception(
    server: WireServer, call: str, status: int, error: type[Exception]
) -> None:
    server.script(
        "POST",
        f"/v1/sessions/s/{call}",
        *[problem(status, error.code, "so it is")],  # type: ignore[attr-defined]
    )
    async with AsyncAgentCube(server.url) as cube:
        with pytest.raises(error, match=f"{call} session s: so it is"):
            await getattr(cube.sessions, call)("s")


async def test_phases_come_as_events_until_the_end(server: WireServer) -> None:
    server.script(
        "GET",
        EVENTS,
        stream(
            phase(3, "Ready"),
            {"event": "ping"},
            {"event": "of a newer server"},
            phase(4, "Deleting", reason="deleted", message="by you"),
            phase(5, "Deleted"),
        ),
    )
    async with AsyncAgentCube(server.url) as cube, cube.sessions.events("s") as told:
        seen = [event async for event in told]
    at = datetime(2026, 11, 21, 15, 0, 0, 500000, tzinfo=UTC)
    assert seen == [
        PhaseChanged(phase="Ready", seq=3, at=at),
        PhaseChanged(phase="Deleting", seq=4, reason="deleted", message="by you", at=at),
        PhaseChanged(phase="Deleted", seq=5, at=at),
    ]
    (asked,) = server.requests("GET", EVENTS)
    assert (asked.query, asked.headers["accept"]) == ({}, "application/x-ndjson")


async def test_events_go_on_over_another_connection(server: WireServer) -> None:
    server.script(
        "GET",
        EVENTS,
        stream(phase(3, "Ready"), phase(4, "Pausing")),
        problem(503, "unavailable", "starting", retryable=True, retry_after="0"),
        stream({"event": "gap", "from": 5, "to": 8}, phase(9, "Paused")),
        stream(phase(10, "Deleted")),
    )
    async with AsyncAgentCube(server.url) as cube:
        told = [(event.seq, event.missed) async for event in cube.sessions.events("s", after=0)]
    assert told == [(3, False), (4, False), (9, True), (10, False)]
    assert [s.query for s in server.requests("GET", EVENTS)] == [
        {"after": "0"},
        {"after": "4"},
        {"after": "4"},
        {"after": "9"},
    ]


async def test_a_session_that_is_not_there_or_ended_unseen_is_told(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        with pytest.raises(SessionNotFound):
            await anext(cube.sessions.events("none"))
        server.script("GET", EVENTS, stream(phase(3, "Ready")), problem(404, "session_not_found", "no such"))
        told = cube.sessions.events("s")
        assert (await anext(told)).phase == "Ready"
        with pytest.raises(SessionNotFound):
            await anext(told)


@pytest.mark.parametrize("broken", [{"event": "phase", "seq": 1}, {"event": "phase", "phase": "Ready"}])
async def test_events_that_are_none_are_unexpected(server: WireServer, broken: dict[str, Any]) -> None:
    server.script("GET", EVENTS, stream(broken))
    async with AsyncAgentCube(server.url) as cube:
        with pytest.raises(UnexpectedAnswer):
            await anext(cube.sessions.events("s"))
