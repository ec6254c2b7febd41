"""Requests reach the sandbox they are for, changed only where they must be."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Port
from tests.integration.router.world import (
    AGENT,
    AGENT_PATH,
    CODE_PATH,
    OK,
    SID,
    Peer,
    eventually,
    replying,
    session,
    world,
)

pytestmark = pytest.mark.anyio


async def test_a_request_reaches_the_port_and_its_answer_comes_back() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        answer = await w.ask(f"POST {AGENT_PATH}/a%2Fb/../c?x=%2F&y", "X-Mine: 1", body=b"hello")
        assert (answer.status, answer.body) == (200, b"ok")
        assert answer["x-agentcube-session-id"] == SID
        assert answer["x-request-id"]
        head, body = seen[0]
        assert (head.method, head.target, body) == (b"POST", b"/a%2Fb/../c?x=%2F&y", b"hello")
        assert head.get(b"x-mine") == b"1"


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "M-SEARCH", "x"])
async def test_any_method_passes(method: str) -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        assert (await w.ask(f"{method} {AGENT_PATH}/")).status == 200
        assert seen[0][0].method == method.encode()


@pytest.mark.parametrize(
    ("path", "target"),
    [
        (AGENT_PATH, b"/"),
        (AGENT_PATH + "?a=b", b"/?a=b"),
        (AGENT_PATH + "/", b"/"),
        (AGENT_PATH + "//a//b?c?d", b"//a//b?c?d"),
        (AGENT_PATH + "/%2e%2e%2F?", b"/%2e%2e%2F?"),
    ],
)
async def test_the_raw_path_behind_invocations_is_what_the_sandbox_gets(path: str, target: bytes) -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        await w.ask(f"GET {path}")
        assert seen[0][0].target == target


async def test_what_we_assert_replaces_what_the_client_says() -> None:
    seen: list[Any] = []
    async with world() as w:
        endpoint = await w.tcp(replying(OK, seen))
        w.agent(endpoint)
        await w.ask(
            f"GET {AGENT_PATH}/",
            "X-Forwarded-For: 6.6.6.6",
            "X-Forwarded-Host: evil",
            "X-Forwarded-Proto: gopher",
            "Forwarded: for=6.6.6.6",
            "X-Real-IP: 6.6.6.6",
            "X-AgentCube-Subject: root",
            "AgentCube-Error: router",
            "X-Request-Id: mine-1",
        )
        head = seen[0][0]
        told = dict(head.headers)
        assert len(told) == len(head.headers), "nothing is there twice"
        assert told[b"authorization"] == f"Bearer for-{SID}-sb-1-alice".encode()
        assert told[b"x-agentcube-session-id"] == SID.encode()
        assert told[b"x-forwarded-for"] == b"127.0.0.1"
        assert told[b"x-forwarded-host"] == b"router.test"
        assert told[b"x-forwarded-proto"] == b"http"
        assert told[b"x-request-id"] == b"mine-1"
        assert told[b"host"] == f"127.0.0.1:{endpoint.port}".encode()
        assert not {b"forwarded", b"x-real-ip", b"x-agentcube-subject", b"agentcube-error"} & set(told)


async def test_hop_by_hop_headers_end_here_both_ways() -> None:
    seen: list[Any] = []
    answer_head = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: X-Hop, keep-alive\r\nX-Hop: 1\r\n"
        b"Keep-Alive: timeout=5\r\nProxy-Authenticate: x\r\nX-End: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
        b"X-AgentCube-Session-Id: forged\r\nAgentCube-Error: router\r\nX-Request-Id: forged\r\n\r\nok"
    )
    async with world() as w:
        w.agent(await w.tcp(replying(answer_head, seen)))
        answer = await w.ask(
            f"GET {AGENT_PATH}/",
            "Connection: x-hop, Authorization, Host, X-Forwarded-For",
            "X-Hop: 1",
            "Keep-Alive: 5",
            "TE: trailers",
            "Proxy-Authorization: x",
            "Proxy-Connection: close",
            "X-End: 1",
            "Cookie: a",
            "Cookie: b",
        )
        told = dict(seen[0][0].headers)
        hops = {b"connection", b"x-hop", b"keep-alive", b"te", b"proxy-authorization", b"proxy-connection"}
        assert not hops & set(told)
        assert told[b"x-end"] == b"1"
        assert told[b"x-forwarded-for"] == b"127.0.0.1"
        assert told[b"authorization"].startswith(b"Bearer for-")
        assert [v for k, v in seen[0][0].headers if k == b"cookie"] == [b"a", b"b"]
        names = [name for name, _ in answer.headers]
        assert not {b"connection", b"x-hop", b"keep-alive", b"proxy-authenticate"} & set(names)
        assert [v for k, v in answer.headers if k == b"set-cookie"] == [b"a=1", b"b=2"]
        assert names.count(b"x-agentcube-session-id") == names.count(b"x-request-id") == 1
        assert answer["x-agentcube-session-id"] == SID
        assert "agentcube-error" not in answer


async def test_requests_follow_each_other_on_kept_connections_of_both_sides() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await replying(OK)(reader, writer)

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        for _ in range(20):
            await peer.send(body=b"x")
            assert (await peer.answer()).status == 200
        assert connections == 1
        assert w.signer.signed == 1, "a token is signed once, not per request"


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        while True:
            head, body = await peer.request()
            said = head.target + body
            await peer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        common = f"Host: x\r\nAuthorization: Bearer alice\r\nX-AgentCube-Session-Id: {SID}\r\n"
        whole = "".join(
            f"POST {AGENT_PATH}/{n} HTTP/1.1\r\n{common}Content-Length: 1\r\n\r\n{n % 10}" for n in range(50)
        )
        whole += "".join(f"GET /nothing/{n} HTTP/1.1\r\nHost: x\r\n\r\n" for n in range(3000))
        sending = asyncio.ensure_future(peer.write(whole.encode()))
        for n in range(50):
            assert (await peer.answer()).body == f"/{n}{n % 10}".encode()
        for n in range(3000):
            answer = await peer.answer()
            assert (answer.status, answer.problem["instance"]) == (404, f"/nothing/{n}")
        await sending


async def test_the_longest_prefix_decides_about_the_port() -> None:
    async with world() as w:
        ends = {
            n: await w.tcp(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n)) for n in (1, 2, 3)
        }
        routes = (
            Port(port=1, path_prefix="/"),
            Port(port=2, path_prefix="/api"),
            Port(port=3, path_prefix="api/v2/"),
        )
        w.add(session(AGENT, ends, routes))
        for path, port in (("", b"1"), ("/x", b"1"), ("/api", b"2"), ("/api/v1", b"2"), ("/api/v2/x", b"3")):
            assert (await w.ask(f"GET {AGENT_PATH}{path}")).body == port


async def test_a_port_gets_its_callers_credentials_only_where_its_template_says_so() -> None:
    seen: list[Any] = []
    async with world() as w:
        end = await w.tcp(replying(OK, seen))
        routes = (Port(port=1), Port(port=2, path_prefix="/trusted", passes_credentials=True))
        w.add(session(AGENT, {1: end, 2: end}, routes))
        await w.ask(f"GET {AGENT_PATH}/")
        await w.ask(f"GET {AGENT_PATH}/trusted")
        w.control.make = session(AGENT, {1: end, 2: end}, routes, id=SessionId("new"))
        await w.ask(f"GET {AGENT_PATH}/trusted", session=None)
        told = [dict(head.headers)[b"authorization"] for head, _ in seen]
        assert told == [f"Bearer for-{SID}-sb-1-alice".encode(), b"Bearer alice", b"Bearer alice"]


async def test_a_path_that_no_port_serves_is_told_apart_from_a_sandboxes_own_404() -> None:
    async with world() as w:
        w.add(session(AGENT, {1: await w.tcp(replying(OK))}, (Port(port=1, path_prefix="/api"),)))
        answer = await w.ask(f"GET {AGENT_PATH}/other")
        assert (answer.status, answer.problem["code"]) == (404, "not_found")
        assert answer["x-agentcube-session-id"] == SID


async def test_code_interpreter_calls_reach_picod_on_its_unix_socket() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.code(await w.unix(replying(OK, seen)))
        await w.ask(f"POST {CODE_PATH}/api/execute", body=b"{}")
        await w.ask(f"POST /v1/sessions/{SID}/execute", session=None, body=b"{}")
        await w.ask(f"GET /v1/sessions/{SID}/files/a%2Fb?x=1", session=None)
        answer = await w.ask(f"GET /v1/sessions/{SID}/logs?tail_bytes=1", session=None)
        assert [head.target for head, _ in seen] == [
            b"/api/execute",
            b"/api/execute",
            b"/api/files/a%2Fb?x=1",
            b"/api/logs?tail_bytes=1",
        ]
        assert {head.get(b"authorization") for head, _ in seen} == {f"Bearer for-{SID}-sb-1-alice".encode()}
        assert answer["x-agentcube-session-id"] == SID


async def test_management_calls_reach_the_manager_vouched_for() -> None:
    seen: list[Any] = []
    async with world() as w:
        await w.unix(replying(OK, seen), "manager")
        for target in (
            "/v1/sessions",
            f"/v1/sessions/{SID}",
            f"/v1/sessions/{SID}/suspend?x",
            "/v1/code-interpreter",
            "/v1/agent-runtime/sessions/x",
            "/v1/namespaces/default/agent-runtimes/a",
            "/v1/pools",
        ):
            answer = await w.ask(f"GET {target}", session=None)
            assert (answer.status, answer.body) == (200, b"ok")
            assert seen[-1][0].target == target.encode()
        assert {h.get(b"authorization") for h, _ in seen} == {b"Bearer manager-alice"}
        assert {h.get(b"host") for h, _ in seen} == {b"router.test"}
        assert w.signer.signed == 1


@pytest.mark.parametrize("token", [None, "wrong", "alice"])
async def test_the_description_of_the_api_is_for_anybody(token: str | None) -> None:
    """A browser sends no key. Nobody's rights go along, not even the caller's."""
    seen: list[Any] = []
    async with world() as w:
        await w.unix(replying(OK, seen), "manager")
        for target in ("/openapi.json", "/docs", "/docs?x"):
            answer = await w.ask(f"GET {target}", session=None, token=token)
            assert (answer.status, answer.body) == (200, b"ok")
        assert {h.get(b"authorization") for h, _ in seen} == {b"Bearer manager-anonymous"}


async def test_without_a_manager_its_calls_are_unavailable() -> None:
    async with world() as w:
        answer = await w.ask("GET /v1/sessions", session=None)
        assert (answer.status, answer.problem["code"], answer["retry-after"]) == (503, "unavailable", "1")


@pytest.mark.parametrize(
    "target", ["/", "/v2/sessions", "/v1", "/v1/sessionsx", "/healthy", "/v1/namespaces2"]
)
async def test_other_paths_are_not_served(target: str) -> None:
    async with world() as w:
        answer = await w.ask(f"GET {target}")
        assert (answer.status, answer.problem["code"]) == (404, "route_not_found")


@pytest.mark.parametrize(
    ("what", "changes"),
    [
        ("unknown", {"id": "t" * 32}),
        ("foreign", {"owner": "bob"}),
        ("other name", {"template": AGENT._replace(name="other")}),
        ("other namespace", {"template": AGENT._replace(namespace="other")}),
        ("being deleted", {"phase": Phase.DELETING}),
    ],
)
async def test_a_session_that_is_not_yours_is_not_there(what: str, changes: dict[str, Any]) -> None:
    async with world() as w:
        reference = await w.ask(f"GET {AGENT_PATH}/", session="u" * 32)
        w.agent(await w.tcp(replying(OK)), **changes)
        answer = await w.ask(f"GET {AGENT_PATH}/")
        assert (answer.status, answer.problem["code"]) == (404, "session_not_found")
        hide = {"request_id": ""}
        assert {**answer.problem, **hide} == {**reference.problem, **hide}
        names = {name for name, _ in answer.headers}
        assert names == {name for name, _ in reference.headers}
        assert "x-agentcube-session-id" not in answer


async def test_other_kind_and_direct_calls_check_the_owner_too() -> None:
    async with world() as w:
        w.agent(await w.tcp(replying(OK)))
        assert (await w.ask(f"GET {CODE_PATH}/")).status == 404
        answer = await w.ask(f"GET /v1/sessions/{SID}/files", session=None, token="bob")
        assert answer.problem["code"] == "session_not_found"


async def test_an_admin_reaches_a_session_of_another() -> None:
    seen: list[Any] = []
    async with world() as w:
        w.agent(await w.tcp(replying(OK, seen)))
        assert (await w.ask(token="root")).status == 200
        assert seen[0][0].get(b"authorization").endswith(b"-root")


async def test_no_credentials_is_401_and_keeps_the_connection() -> None:
    async with world() as w:
        peer = await w.connect()
        for _ in range(2):
            await peer.send(token=None, body=b"read anyway")
            answer = await peer.answer()
            assert (answer.status, answer.problem["code"]) == (401, "unauthenticated")
            assert answer["www-authenticate"] == "Bearer"
            assert "connection" not in answer


async def test_a_session_that_only_the_store_knows_is_found() -> None:
    async with world() as w:
        made = w.agent(await w.tcp(replying(OK)))
        del w.sessions.known[SID]
        w.sessions.behind[SID] = made
        assert (await w.ask()).status == 200


async def test_a_session_that_moved_to_another_sandbox_is_followed() -> None:
    async with world() as w:
        made = w.agent(await w.tcp(replying(OK)))
        assert (await w.ask()).body == b"ok"
        end = await w.tcp(replying(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nnew"))
        assert made.sandbox is not None
        w.add(replace(made, sandbox=replace(made.sandbox, ports={8080: end}), revision=2))
        assert (await w.ask()).body == b"new"


async def test_activity_is_written_in_bunches_and_while_a_command_runs() -> None:
    go = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        while True:
            head, _ = await peer.request()
            if head.target == b"/long":
                await go.wait()
            await peer.write(OK)

    async with world() as w:
        w.agent(await w.tcp(handle))
        peer = await w.connect()
        for _ in range(200):
            await peer.send()
            await peer.answer()
        await eventually(lambda: SID in w.sessions.touched)
        assert w.sessions.touches < 100
        await peer.send(f"GET {AGENT_PATH}/long")
        for _ in range(3):
            w.sessions.touched.clear()
            await eventually(lambda: SID in w.sessions.touched)
        go.set()
        await peer.answer()
        await eventually(lambda: w.router.in_flight == 0)
        w.sessions.touched.clear()
        touches = w.sessions.touches
        await eventually(lambda: not w.sessions.touched or w.sessions.touches > touches)


async def test_health() -> None:
    async with world() as w:
        live = await w.ask("GET /health/live", token=None, session=None)
        assert (live.status, live.body) == (200, b'{"status": "healthy"}')
        down = await w.ask("GET /health", token=None, session=None)
        assert (down.status, down.problem["code"]) == (503, "unavailable")
        await w.unix(replying(OK), "manager")
        for path in ("/health", "/health/ready"):
            up = await w.ask(f"GET {path}", token=None, session=None)
            assert (up.status, up.body) == (200, b'{"status": "healthy"}')
        posted = await w.ask("POST /health", token=None, session=None)
        assert (posted.status, posted.problem["code"]) == (405, "method_not_allowed")
        head = await w.ask("HEAD /health", token=None, session=None)
        assert (head.status, head.body, head["content-length"]) == (200, b"", "21")
