"""Sessions that must first be made, woken or looked at."""

import asyncio
import os
import socket
from dataclasses import replace
from typing import Any

import pytest

from agentcube.errors import (
    AgentCubeError,
    CapacityExhausted,
    SessionNotFound,
    StartTimedOut,
    StoreFailed,
    TemplateNotFound,
)
from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Endpoint
from agentcube.ports.tokens import Subject
from tests.integration.router.world import (
    AGENT,
    AGENT_PATH,
    CODE,
    CODE_PATH,
    OK,
    SID,
    Peer,
    World,
    eventually,
    replying,
    world,
)

pytestmark = pytest.mark.anyio

NOBODY = Endpoint(scheme="unix", path="/nonexistent/socket")


async def not_listening(w: World) -> Endpoint:
    """A path of a socket that refuses connections."""
    path = str(w.directory / "refusing")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    return Endpoint(scheme="unix", path=path)


async def test_without_a_session_one_is_made_and_gets_the_same_request() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.control.gate.clear()
        w.control.make = w.agent(await w.tcp(replying(OK, seen)))
        w.sessions.known.clear()
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/run?x=1", "X-A: b", body=b"first half", session=None)
        await eventually(lambda: w.control.created == [(AGENT, Subject("alice"))])
        assert not seen
        w.control.gate.set()
        answer = await peer.answer()
        assert (answer.status, answer["x-agentcube-session-id"]) == (200, SID)
        head, body = seen[0]
        assert (head.method, head.target, head.get(b"x-a"), body) == (
            b"POST",
            b"/run?x=1",
            b"b",
            b"first half",
        )
        assert head.get(b"x-agentcube-session-id") == SID.encode()


@pytest.mark.parametrize(
    ("sent", "key"),
    [
        (("Idempotency-Key: a b",), "a b"),
        ((), ""),
        (("IDEMPOTENCY-KEY: a", "idempotency-key: b"), ""),
        ((f"Idempotency-Key: {'k' * 256}",), ""),
    ],
)
async def test_a_first_request_s_key_is_its_session_s_and_reaches_the_agent(sent: Any, key: str) -> None:
    seen: list[Any] = []
    async with world() as w:
        w.control.make = w.agent(await w.tcp(replying(OK, seen)))
        w.sessions.known.clear()
        peer = await w.connect()
        await peer.send(f"POST {AGENT_PATH}/run", *sent, body=b"x", session=None)
        assert (await peer.answer()).status == 200
        assert w.control.keys == [key]
        head, _ = seen[0]
        values = [value for name, value in head.headers if name.lower() == b"idempotency-key"]
        assert values == [line.partition(": ")[2].encode() for line in sent]


async def test_a_large_body_waits_in_bounds_while_its_session_is_made() -> None:
    size, sent = 32 << 20, 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.head()
        got = len(peer.rest)
        while got < size:
            got += len(await reader.read(1 << 20))
        await peer.write(OK)

    async with world() as w:
        w.control.gate.clear()
        w.control.make = w.code(await w.unix(handle))
        peer = await w.connect()
        await peer.send(f"POST {CODE_PATH}/api/files", f"Content-Length: {size}", session=None)

        async def pour() -> None:
            nonlocal sent
            while sent < size:
                await peer.write(b"x" * (1 << 18))
                sent += 1 << 18

        pouring = asyncio.ensure_future(pour())
        await eventually(lambda: bool(w.control.created))
        stuck_at = -1
        while stuck_at != sent:
            stuck_at = sent
            await w.turns()
        assert sent < size
        assert w.router._engine.held_bytes < 2 << 20
        w.control.gate.set()
        await pouring
        assert (await peer.answer()).status == 200
        assert w.router._engine.held_bytes == 0
        assert w.control.created == [(CODE, Subject("alice"))]


@pytest.mark.parametrize(
    ("error", "status"),
    [(TemplateNotFound("no such"), 404), (CapacityExhausted("full"), 503), (StartTimedOut("slow"), 504)],
)
async def test_a_session_that_cannot_be_made_is_a_problem_without_a_session(
    error: AgentCubeError, status: int
) -> None:
    async with world() as w:
        w.control.make = error
        answer = await w.ask(session=None)
        assert (answer.status, answer.problem["code"], answer.problem["detail"]) == (
            status,
            error.code,
            error.detail,
        )
        assert "x-agentcube-session-id" not in answer
        assert ("retry-after" in answer) == (status == 503)


async def test_a_new_session_that_failed_is_named_all_the_same() -> None:
    async with world() as w:
        made = w.agent(NOBODY, phase=Phase.FAILED, reason="start_failed", message="python: not found")
        w.control.make = replace(made, sandbox=None)
        answer = await w.ask(session=None)
        assert (answer.status, answer["x-agentcube-session-id"]) == (502, SID)
        assert answer.problem["code"] == "session_failed"
        assert (answer.problem["detail"], answer.problem["reason"]) == ("python: not found", "start_failed")


async def test_a_new_session_whose_sandbox_does_not_answer_is_named_all_the_same() -> None:
    async with world() as w:
        w.control.make = w.agent(NOBODY)
        answer = await w.ask(session=None)
        assert (answer.status, answer["x-agentcube-session-id"]) == (502, SID)
        assert answer.problem["code"] == "sandbox_unreachable"


async def test_a_bug_behind_the_control_port_is_an_answer_and_no_hang() -> None:
    async with world() as w:
        w.control.make = RuntimeError("secret of the inside")
        answer = await w.ask(session=None)
        assert (answer.status, answer.problem["code"]) == (500, "internal")
        assert b"secret" not in answer.body


async def test_a_store_that_fails_is_told() -> None:
    class Failing:
        def peek(self, id: str) -> None:
            return None

        async def get(self, id: str) -> None:
            raise StoreFailed("the session store is out of reach")

    async with world() as w:
        w.router._engine.sessions._store = Failing()  # type: ignore[assignment]
        answer = await w.ask()
        assert (answer.status, answer.problem["code"], answer["retry-after"]) == (503, "store_failed", "1")


async def test_a_failed_session_tells_why() -> None:
    async with world() as w:
        w.agent(NOBODY, phase=Phase.FAILED, reason="sandbox_died")
        answer = await w.ask()
        assert (answer.status, answer.problem["code"], answer.problem["reason"]) == (
            502,
            "session_failed",
            "sandbox_died",
        )
        assert w.control.woken == []


async def test_a_sandbox_that_refuses_is_looked_at_once_and_tried_again() -> None:
    async with world() as w:
        made = w.agent(await not_listening(w))
        end = await w.tcp(replying(OK))
        assert made.sandbox is not None
        w.control.suspects_to = replace(made, sandbox=replace(made.sandbox, ports={8080: end}), revision=2)
        assert (await w.ask(f"POST {AGENT_PATH}/", body=b"x")).status == 200
        assert w.control.suspected == [SID]


@pytest.mark.parametrize("where", ["unix", "tcp"])
async def test_a_sandbox_that_refuses_again_is_a_502(where: str) -> None:
    async with world() as w:
        end = await not_listening(w)
        if where == "tcp":
            with socket.create_server(("127.0.0.1", 0)) as sock:
                end = Endpoint(scheme="tcp", host="127.0.0.1", port=sock.getsockname()[1])
        w.agent(end)
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")
        assert answer["x-agentcube-session-id"] == SID
        assert w.control.suspected == [SID]


async def test_a_dead_sandbox_is_told_by_what_the_manager_found() -> None:
    async with world() as w:
        made = w.agent(await not_listening(w))
        w.control.suspects_to = replace(
            made, phase=Phase.FAILED, reason="sandbox_died", sandbox=None, revision=2
        )
        assert (await w.ask()).problem["code"] == "session_failed"
        w.agent(await not_listening_again(w))
        w.control.suspects_to = SessionNotFound()
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (404, "session_not_found")


async def not_listening_again(w: World) -> Endpoint:
    os.unlink(w.directory / "refusing")
    return await not_listening(w)


async def test_requests_that_meet_one_dead_sandbox_share_one_look() -> None:
    async with world() as w:
        w.agent(await not_listening(w))
        w.control.gate.clear()
        peers = [await w.connect() for _ in range(8)]
        for peer in peers:
            await peer.send()
        await eventually(lambda: w.router._engine.waiting == 8 and w.control.suspected == [SID])
        w.control.gate.set()
        for peer in peers:
            assert (await peer.answer()).status == 502
        assert w.control.suspected == [SID]


async def passing(w: World, handler: Any, *, reply: bytes = b"+") -> Endpoint:
    """A control socket as PicoD has it, for a server that no path leads to."""
    inside = await w.tcp(handler)

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readline()
        assert asked == b"DIAL 8080\n"
        if reply != b"+":
            writer.write(reply)
            return
        # A copy: asyncio does not lend its own sockets for sendmsg.
        copy = os.dup(writer.get_extra_info("socket").fileno())
        with (
            socket.socket(fileno=copy) as mine,
            socket.create_connection((inside.host, inside.port)) as made,
        ):
            socket.send_fds(mine, [b"+"], [made.fileno()])

    made = await w.unix(control, "control")
    return Endpoint(scheme="passed", path=made.path, port=8080)


async def test_a_port_inside_is_reached_through_a_passed_descriptor() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await passing(w, replying(OK, seen)))
        peer = await w.connect()
        for _ in range(3):
            await peer.send(f"POST {AGENT_PATH}/", body=b"x" * 100_000)
            assert (await peer.answer()).body == b"ok"
        assert seen[0][0].get(b"host") == b"localhost:8080"


@pytest.mark.parametrize("reply", [b"-ECONNREFUSED\n", b"-nonsense\n", b"?", b""])
async def test_a_port_inside_that_refuses_is_unreachable(reply: bytes) -> None:
    async with world() as w:
        w.agent(await passing(w, replying(OK), reply=reply))
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")


async def test_a_descriptor_that_is_no_tcp_socket_is_not_used() -> None:
    async with world() as w:
        mine, other = socket.socketpair()

        async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readline()
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as sock:
                socket.send_fds(sock, [b"+"], [mine.fileno()])

        made = await w.unix(control, "control")
        w.agent(Endpoint(scheme="passed", path=made.path, port=8080))
        with mine, other:
            assert (await w.ask()).problem["code"] == "sandbox_unreachable"
