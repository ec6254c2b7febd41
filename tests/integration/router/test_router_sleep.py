"""Sessions that sleep, or fall asleep while something of theirs is under way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from agentcube.errors import SandboxUnavailable, SessionNotFound, WakeFailed
from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Endpoint
from agentcube.model.session import ACTIVITY_LAG, Session
from agentcube.router import RouterSettings, wakes
from tests.integration.router.world import (
    AGENT_PATH,
    CODE_PATH,
    FAST,
    OK,
    SID,
    Handler,
    Peer,
    World,
    eventually,
    replying,
    world,
)

pytestmark = pytest.mark.anyio

NOBODY = Endpoint(scheme="unix", path="/nonexistent/socket")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n"
CHUNK = b"2\r\nhi\r\n"
STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNK


def as_phase(session: Session, phase: Phase, **changes: Any) -> Session:
    return replace(session, **({"phase": phase, "revision": session.revision + 1} | changes))


async def asleep(w: World, handler: Handler, phase: Phase = Phase.PAUSED) -> Session:
    """A session in that phase that the control plane can wake."""
    ready = w.agent(await w.tcp(handler))
    sleeping = w.add(as_phase(ready, phase))
    w.control.wakes_to = as_phase(sleeping, Phase.READY)
    return sleeping


@pytest.mark.parametrize("phase", [Phase.PENDING, Phase.RUNNING, Phase.PAUSING, Phase.PAUSED, Phase.RESUMING])
async def test_requests_for_a_session_that_is_not_ready_wait_and_share_one_wake(phase: Phase) -> None:
    async with world() as w:
        await asleep(w, replying(OK), phase)
        w.control.gate.clear()
        peers = [await w.connect() for _ in range(5)]
        for peer in peers:
            await peer.send(f"POST {AGENT_PATH}/", body=b"x")
        await eventually(lambda: w.router._engine.waiting == 5)
        await w.turns()  # all wait for the wake
        assert w.control.woken == [SID]
        w.control.gate.set()
        for peer in peers:
            answer = await peer.answer()
            assert (answer.status, answer["x-agentcube-session-id"]) == (200, SID)
        assert (await w.ask()).status == 200
        assert w.control.woken == [SID]


async def test_calls_of_picod_wake_too_and_keep_their_body() -> None:
    seen: list[Any] = []
    async with world() as w:
        ready = w.code(await w.unix(replying(OK, seen)))
        sleeping = w.add(as_phase(ready, Phase.PAUSED))
        w.control.wakes_to = as_phase(sleeping, Phase.READY)
        assert (await w.ask(f"POST /v1/sessions/{SID}/execute", body=b"a" * 100_000)).status == 200
        w.sessions.change(as_phase(sleeping, Phase.PAUSED, revision=4))
        w.control.wakes_to = as_phase(sleeping, Phase.READY, revision=5)
        assert (await w.ask(f"PUT {CODE_PATH}/api/x", body=b"b")).status == 200
        assert [body for _, body in seen] == [b"a" * 100_000, b"b"]
        assert w.control.woken == [SID, SID]


async def test_an_upgrade_wakes_and_its_early_bytes_arrive() -> None:
    async with world() as w:
        await asleep(w, echo)
        peer = await w.connect()
        await peer.send("", "Connection: Upgrade", "Upgrade: echo/1")
        await peer.write(b"early")
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        await peer.write(b" late")
        assert peer.rest + await peer.reader.readexactly(10 - len(peer.rest)) == b"early late"


async def test_a_wake_that_fails_is_one_503_for_all_and_the_next_request_tries_again() -> None:
    async with world() as w:
        sleeping = await asleep(w, replying(OK))
        awake, w.control.wakes_to = w.control.wakes_to, WakeFailed("no memory")
        w.control.gate.clear()
        peers = [await w.connect() for _ in range(3)]
        for peer in peers:
            await peer.send()
        await eventually(lambda: w.router._engine.waiting == 3)
        await w.turns()
        w.control.gate.set()
        for peer in peers:
            answer = await peer.answer()
            assert (answer.status, answer["retry-after"]) == (503, "1")
            assert (answer.problem["code"], answer.problem["detail"]) == ("wake_failed", "no memory")
            assert answer["x-agentcube-session-id"] == SID
        assert w.control.woken == [SID]
        assert w.sessions.known[SID] == sleeping
        w.control.wakes_to = awake
        assert (await w.ask()).status == 200


@pytest.mark.parametrize(
    ("phase", "status", "code"),
    [(Phase.PAUSED, 503, "wake_failed"), (Phase.PENDING, 504, "start_timed_out")],
)
async def test_a_session_that_does_not_become_ready_in_time(phase: Phase, status: int, code: str) -> None:
    async with world(replace(FAST, wake_timeout_s=0.05)) as w:
        made = w.agent(NOBODY, phase=phase)
        if phase is Phase.PENDING:
            w.add(replace(made, sandbox=None))
        w.control.gate.clear()
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (status, code)
        assert answer["x-agentcube-session-id"] == SID


async def test_a_session_that_ended_instead_is_told_as_such() -> None:
    async with world() as w:
        await asleep(w, replying(OK))
        for error, status in ((SessionNotFound("gone"), 404), (SandboxUnavailable("died"), 502)):
            w.control.wakes_to = error
            assert (await w.ask()).status == status


@pytest.mark.parametrize(
    ("bound", "status", "limit"),
    [({"waiting_max": 2}, 503, "waiting"), ({"in_flight_per_session_max": 2}, 429, 2)],
)
async def test_only_so_many_requests_wait(bound: dict[str, int], status: int, limit: object) -> None:
    async with world(replace(FAST, **bound)) as w:  # type: ignore[arg-type]
        await asleep(w, replying(OK))
        w.control.gate.clear()
        peers = [await w.connect() for _ in range(2)]
        for peer in peers:
            await peer.send()
        await eventually(lambda: w.router._engine.waiting == 2)
        answer = await w.ask()
        assert (answer.status, answer.problem["limit"], answer["retry-after"]) == (status, limit, "1")
        w.control.gate.set()
        for peer in peers:
            assert (await peer.answer()).status == 200


# Traffic under way


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    peer = Peer(reader, writer)
    await peer.head()
    await peer.write(SWITCH + peer.rest)
    while data := await reader.read(65536):
        await peer.write(data)


class Slow:
    """A server that takes a request and answers when told to; or it begins at once, and says more when told to."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.more, self.go = asyncio.Event(), asyncio.Event()
        self.took = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        self.took += 1
        await peer.write(self.first)
        if self.first:
            await self.more.wait()
            await peer.write(CHUNK)
        await self.go.wait()
        await peer.write(b"0\r\n\r\n" if self.first else OK)


@asynccontextmanager
async def under_way(server: Slow, *, picod: bool) -> AsyncIterator[tuple[World, Session, Peer]]:
    """A request that the sandbox has, of a Ready session that can be woken when it sleeps."""
    async with world() as w:
        end = await w.unix(server)
        session = w.code(end) if picod else w.agent(end)
        w.control.wakes_to = replace(session, revision=3)
        peer = await w.connect()
        await peer.send(f"POST /v1/sessions/{SID}/execute" if picod else f"POST {AGENT_PATH}/")
        await eventually(lambda: server.took == 1)
        if server.first:
            await peer.head()
        yield w, session, peer
        server.more.set()
        server.go.set()
        if server.first:
            while not peer.rest.endswith(b"\r\n0\r\n\r\n"):
                peer.rest += await peer.reader.read(100)
        else:
            assert (await peer.answer()).body == b"ok"


@pytest.mark.parametrize("phase", [Phase.PAUSING, Phase.PAUSED])
async def test_a_request_that_the_sandbox_has_wakes_a_session_that_falls_asleep(phase: Phase) -> None:
    async with under_way(Slow(), picod=False) as (w, session, _):
        w.sessions.change(as_phase(session, phase))
        await eventually(lambda: w.control.woken == [SID])
        await eventually(lambda: w.sessions.known[SID].phase is Phase.READY)


async def test_a_change_that_was_missed_is_seen_all_the_same() -> None:
    async with under_way(Slow(), picod=False) as (w, session, _):
        w.sessions.known[SID] = as_phase(session, Phase.PAUSED)
        w.sessions.feed.publish(f"other-{i}" for i in range(5000))  # type: ignore[misc]  # more than a reader may leave
        await eventually(lambda: w.control.woken == [SID])


async def test_a_call_of_picod_is_waited_for_however_quiet_its_stream_is() -> None:
    async with under_way(Slow(STREAM), picod=True) as (w, session, _):
        w.sessions.touched.clear()
        await eventually(lambda: SID in w.sessions.touched)
        w.sessions.change(as_phase(session, Phase.PAUSING))
        await eventually(lambda: w.control.woken == [SID])


async def test_an_agents_quiet_stream_lets_its_session_sleep_until_bytes_come() -> None:
    server = Slow(STREAM)
    async with under_way(server, picod=False) as (w, session, _):
        await eventually(lambda: not w.router._engine.activity.seen)
        touches = w.sessions.touches
        w.sessions.change(as_phase(session, Phase.PAUSED))
        await w.turns()
        assert (w.sessions.touches, w.control.woken) == (touches, [])
        server.more.set()  # the sandbox wrote this before it was suspended
        await eventually(lambda: w.control.woken == [SID])


async def test_bytes_for_a_quiet_tunnel_wake_its_session() -> None:
    async with world() as w:
        session = w.agent(await w.tcp(echo))
        peer = await w.connect()
        await peer.send("", "Connection: Upgrade", "Upgrade: echo/1")
        await peer.head()
        sleeping = as_phase(session, Phase.PAUSED)
        w.control.wakes_to = as_phase(sleeping, Phase.READY)
        w.sessions.change(sleeping)
        await w.turns()
        assert w.control.woken == []
        await peer.write(b"hello")
        await eventually(lambda: w.control.woken == [SID])
        assert peer.rest + await peer.reader.readexactly(5 - len(peer.rest)) == b"hello"


async def test_a_wake_for_traffic_is_tried_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wakes, "_RETRY_S", 0.01)
    async with under_way(Slow(), picod=False) as (w, session, _):
        awake, w.control.wakes_to = w.control.wakes_to, WakeFailed("no memory")
        w.sessions.change(as_phase(session, Phase.PAUSED))
        await eventually(lambda: len(w.control.woken) >= 3)
        w.control.wakes_to = awake
        await eventually(lambda: w.sessions.known[SID].phase is Phase.READY)
        await eventually(lambda: not w.router._engine.wakes._rousing)


async def test_a_session_without_requests_under_way_is_left_asleep() -> None:
    async with world() as w:
        session = w.agent(await w.tcp(replying(OK)))
        assert (await w.ask()).status == 200
        w.sessions.change(as_phase(session, Phase.PAUSED))
        await w.turns()
        assert w.control.woken == []


def test_noted_activity_is_on_record_before_anybody_counts_on_it() -> None:
    settings = RouterSettings()
    assert settings.sweep_interval_s + settings.flush_interval_s < ACTIVITY_LAG.total_seconds()
