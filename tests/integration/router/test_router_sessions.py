"""Sessions that must first be made, woken or looked at; and connections that break."""

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
    FAST,
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


class Stale:
    """A server that answers once per connection and hangs up when asked again."""

    def __init__(self, *, says: bytes = b"", polite: bool = False) -> None:
        self.connections = 0
        self.requests: list[bytes] = []
        self.says = says
        self.polite = polite

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        peer = Peer(reader, writer)
        for turn in range(2):
            head, _ = await peer.request()
            self.requests.append(head.method)
            if turn == 1:
                await peer.write(self.says)
                return
            await peer.write(OK)
            if self.polite:
                return


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PUT"])
async def test_a_stale_connection_costs_an_idempotent_request_nothing(method: str) -> None:
    async with world() as w:
        server = Stale()
        w.agent(await w.tcp(server))
        assert (await w.ask(f"POST {AGENT_PATH}/")).status == 200
        answer = await w.ask(f"{method} {AGENT_PATH}/")
        assert (answer.status, server.connections) == (200, 2)
        assert server.requests == [b"POST", method.encode(), method.encode()]


@pytest.mark.parametrize(
    ("first", "body", "says"),
    [
        (f"POST {AGENT_PATH}/", b"", b""),
        (f"PATCH {AGENT_PATH}/", b"", b""),
        (f"PUT {AGENT_PATH}/", b"with a body", b""),
        (f"GET {AGENT_PATH}/", b"", b"HTTP/1.1 2"),
        (f"GET {AGENT_PATH}/", b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    ],
)
async def test_what_may_have_been_done_is_not_sent_again(first: str, body: bytes, says: bytes) -> None:
    async with world() as w:
        server = Stale(says=says)
        w.agent(await w.tcp(server))
        assert (await w.ask(f"POST {AGENT_PATH}/")).status == 200
        peer = await w.connect()
        await peer.send(first, body=body)
        if b"103" in says:
            await peer.head()
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")
        assert len(server.requests) == 2


async def test_a_sandbox_that_hangs_up_on_a_fresh_connection_is_suspected() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await Peer(reader, writer).request()

    async with world() as w:
        w.agent(await w.tcp(handle))
        answer = await w.ask()
        assert (answer.status, answer.problem["code"]) == (502, "sandbox_unreachable")
        await eventually(lambda: w.control.suspected == [SID])


async def test_a_connection_that_its_server_closed_while_idle_is_not_used() -> None:
    async with world() as w:
        server = Stale(polite=True)
        w.agent(await w.tcp(server))
        for _ in range(3):
            assert (await w.ask(f"POST {AGENT_PATH}/", body=b"x")).status == 200
            await eventually(lambda: w.router._engine.pools.idle == 0)
        assert server.connections == 3


async def test_idle_connections_are_closed_before_their_server_would() -> None:
    ended = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        await peer.request()
        await peer.write(OK)
        assert await reader.read() == b""
        ended.set()

    async with world(replace(FAST, upstream_idle_ttl_s=0.05)) as w:
        w.agent(await w.tcp(handle))
        assert (await w.ask()).status == 200
        async with asyncio.timeout(5):
            await ended.wait()


async def test_the_connection_used_last_is_used_first() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        mine = count
        peer = Peer(reader, writer)
        while True:
            await peer.request()
            if gates:
                await gates[mine].wait()
            await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % mine)

    count = 0
    gates = {n: asyncio.Event() for n in (1, 2, 3)}
    async with world() as w:
        w.agent(await w.tcp(handle))
        peers = [await w.connect() for _ in range(3)]
        for n, peer in enumerate(peers, 1):
            await peer.send()
            await eventually(lambda n=n: count == n)
        for n in (2, 3, 1):
            gates[n].set()
            await peers[n - 1].answer()
        gates.clear()
        for _ in range(5):
            assert (await w.ask()).body == b"1"
