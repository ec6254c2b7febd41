"""Exposed ports, by path and by host name: who reaches them, and what crosses."""

from dataclasses import replace
from typing import Any

import pytest

from agentcube.model.ids import SessionId
from agentcube.model.sandbox import Port
from tests.integration.router.exposing import (
    DOMAIN,
    SETTINGS,
    ask,
    cookie,
    expose,
    exposing,
    fields,
    host,
    known,
)
from tests.integration.router.world import AGENT, AGENT_PATH, FAST, OK, SID, replying, session, world

pytestmark = pytest.mark.anyio

CSP = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"


# By path.


async def test_by_path_the_prefix_is_stripped_and_told_and_no_credentials_pass() -> None:
    seen: list[Any] = []
    async with world() as w:
        port = await exposing(w, replying(OK, seen))
        path = f"/v1/sessions/{SID}/ports/{port}"
        answer = await w.ask(
            f"POST {path}/a%2Fb/../c?x=%20&y",
            "X-Forwarded-Prefix: /evil",
            "Cookie: a=b",
            session=None,
            body=b"hi",
        )
        assert (answer.status, answer.body, answer["x-agentcube-session-id"]) == (200, b"ok", SID)
        head, body = seen[0]
        assert (head.method, head.target, body) == (b"POST", b"/a%2Fb/../c?x=%20&y", b"hi")
        got = dict(head.headers)
        assert got[b"x-forwarded-prefix"] == path.encode()
        assert got[b"host"] == f"127.0.0.1:{port}".encode()
        assert got[b"x-forwarded-host"] == b"router.test"
        assert got[b"cookie"] == b"a=b"
        assert b"authorization" not in got
        assert (await w.ask(f"GET {path}/", session=None)).status == 200
        assert seen[1][0].target == b"/"


async def test_by_path_pages_are_put_into_origins_of_their_own_and_cookies_below_their_path() -> None:
    said = (
        b"HTTP/1.1 200 OK\r\nContent-Security-Policy: img-src *\r\nSet-Cookie: a=1; Domain=router.test; HttpOnly\r\n"
        b"Set-Cookie: b=2; path=/deep ;Secure\r\nSet-Cookie: agentcube-share=x; Path=/\r\nService-Worker-Allowed: /\r\n"
        b'Clear-Site-Data: "*"\r\nStrict-Transport-Security: max-age=9\r\nNEL: {}\r\nWWW-Authenticate: Basic\r\n'
        b"X-App: 1\r\nContent-Length: 2\r\n\r\nok"
    )
    async with world() as w:
        port = await exposing(w, replying(said))
        path = f"/v1/sessions/{SID}/ports/{port}"
        answer = await w.ask(f"GET {path}/", session=None)
        assert fields(answer, "content-security-policy") == ["img-src *", CSP]
        assert fields(answer, "set-cookie") == [
            f"a=1; HttpOnly; Path={path}/",
            f"b=2; Secure; Path={path}/deep",
        ]
        names = {name for name, _ in answer.headers}
        assert names == {
            b"content-security-policy",
            b"set-cookie",
            b"x-app",
            b"content-length",
            b"x-agentcube-session-id",
            b"x-request-id",
        }
        assert CSP not in fields(await w.ask(), "content-security-policy")


async def test_a_redirect_of_a_sandbox_does_not_lead_its_owners_program_to_the_api() -> None:
    """It would follow with its key, and with method and body (307)."""
    said = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: /v1/sessions/other/suspend\r\nContent-Length: 0\r\n\r\n"
    async with world(SETTINGS) as w:
        end = await w.tcp(replying(said))
        port = expose(w, end.port)
        path = f"/v1/sessions/{SID}/ports/{port}"
        answer = await w.ask(f"POST {path}/x", session=None, body=b"hi")
        assert answer["location"] == f"{path}/v1/sessions/other/suspend"
        hosted = await ask(w, "GET /x", host(port), token="alice")
        assert hosted["location"] == "/v1/sessions/other/suspend"  # its own host has no API
        w.agent(end, revision=2)
        for behind in ("/x?y=/z", ""):
            answer = await w.ask(f"POST {AGENT_PATH}{behind}", body=b"hi")
            assert answer["location"] == f"{AGENT_PATH}/v1/sessions/other/suspend"


async def test_by_path_only_the_owner_comes_and_a_share_links_cookie_is_nothing() -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        path = f"/v1/sessions/{SID}/ports/{port}/"
        for token, status, code in (
            ("alice", 200, ""),
            ("bob", 404, "session_not_found"),
            (None, 401, "unauthenticated"),
        ):
            answer = await w.ask(f"GET {path}", cookie(port), token=token, session=None)
            assert answer.status == status
            assert status == 200 or answer.problem["code"] == code
        assert (await w.ask(f"GET {path}", token="root", session=None)).status == 200


@pytest.mark.parametrize("number", ["1", "65535", "65536", "99999"])
async def test_a_port_that_is_not_exposed_is_not_there(number: str) -> None:
    async with world(SETTINGS) as w:
        await exposing(w, replying(OK))
        answer = await w.ask(f"GET /v1/sessions/{SID}/ports/{number}/", session=None)
        assert (answer.status, answer.problem["code"]) == (404, "not_found")
        named = await ask(w, "GET /", host(int(number)), token="alice")
        assert (named.status, named.problem["code"] in ("not_found", "route_not_found")) == (404, True)


@pytest.mark.parametrize(
    "path", ["ports", "ports/80", "ports/80?x", "ports/0/", "ports/08/", "ports/x/", "shares"]
)
async def test_without_a_port_and_a_slash_it_is_the_managers(path: str) -> None:
    seen: list[Any] = []
    async with world() as w:
        await w.unix(replying(OK, seen), "manager")
        assert (await w.ask(f"GET /v1/sessions/{SID}/{path}", session=None)).status == 200
        assert seen[0][0].target == f"/v1/sessions/{SID}/{path}".encode()


# By host name.


async def test_on_its_own_host_a_port_gets_everything_and_nothing_else_is_served() -> None:
    seen: list[Any] = []
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK, seen))
        for target in ("/", "/health", "/v1/sessions", f"/v1/sessions/{SID}/execute", "/docs?x=1"):
            at = f"{host(port)}:{w.port}"
            answer = await ask(w, f"GET {target}", at, token="alice")
            assert (answer.status, answer.body) == (200, b"ok")
            got = dict(seen[-1][0].headers)
            assert (seen[-1][0].target.decode(), got[b"host"].decode()) == (target, at)
            assert b"authorization" not in got
            assert b"x-forwarded-prefix" not in got
            assert "content-security-policy" not in answer


async def test_hosts_are_read_as_browsers_write_them_and_others_are_not_taken_for_ports() -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        for at in (host(port).upper(), host(port) + ".", host(port) + ":81", host(port) + ".:81"):
            assert (await ask(w, "GET /", at, token="alice")).status == 200
        for at in (
            f"{port}-.{DOMAIN}",
            f"0{port}-{SID}.{DOMAIN}",
            f"{port}.{DOMAIN}",
            f"70000-{SID}.{DOMAIN}",
            f"a.{host(port)}",
        ):
            answer = await ask(w, "GET /health/live", at, token="alice")
            assert (answer.status, answer.problem["code"]) == (404, "route_not_found")
        for at in (
            DOMAIN,
            f"{host(port)}.evil.test",
            f"x{host(port)}",
            host(port, domain="localhost"),
        ):
            assert (await ask(w, "GET /health/live", at)).body == b'{"status": "healthy"}'


async def test_without_a_domain_no_host_is_a_ports() -> None:
    async with world(replace(FAST, ports_domain="")) as w:
        port = await exposing(w, replying(OK))
        assert (await ask(w, "GET /health/live", host(port, domain="localhost"))).status == 200


async def test_on_its_own_host_cookies_stay_on_it() -> None:
    said = (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1; Domain=apps.test; Path=/x\r\nSet-Cookie: __Host-agentcube-share=1\r\n"
        b'Clear-Site-Data: "cookies"\r\nService-Worker-Allowed: /\r\nContent-Length: 2\r\n\r\nok'
    )
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(said))
        answer = await ask(w, "GET /", host(port), token="alice")
        assert fields(answer, "set-cookie") == ["a=1; Path=/x"]
        assert "clear-site-data" not in answer
        assert "service-worker-allowed" in answer


async def test_declared_ports_are_reached_too_and_by_tunnels_the_exposed_ones() -> None:
    async with world(SETTINGS) as w:
        w.agent(await w.tcp(replying(OK)))
        assert (await ask(w, "GET /", host(8080), token="alice")).body == b"ok"
        assert (await w.ask(f"GET /v1/sessions/{SID}/ports/8080/", session=None)).body == b"ok"
        port = await exposing(w, replying(OK), revision=2)
        peer = await w.connect()
        await peer.send(
            f"GET /v1/sessions/{SID}/tcp/{port}", "Connection: Upgrade", "Upgrade: tcp", session=None
        )
        assert (await peer.head()).startswith(b"HTTP/1.1 101")
        await peer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await peer.answer()).body == b"ok"


async def test_ports_that_were_withdrawn_are_forgotten() -> None:
    """A session may expose and withdraw any number of them, one after the other."""
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        assert (await ask(w, "GET /", host(port), token="alice")).status == 200
        entry = w.router._engine.sessions._entries[SessionId(SID)]
        assert list(entry._others) == [port]
        w.sessions.change(replace(known(w), exposed={1: "key"}, revision=2))
        assert (await ask(w, "GET /", host(port), token="alice")).status == 404
        assert not entry._others


async def test_a_sandbox_that_cannot_reach_other_ports_says_so() -> None:
    async with world() as w:
        made = session(AGENT, {8080: await w.tcp(replying(OK))}, (Port(port=8080),), exposed={3000: "key"})
        w.add(made)
        answer = await w.ask(f"GET /v1/sessions/{SID}/ports/3000/", session=None)
        assert (answer.status, answer.problem["reason"]) == (404, "no_such_port")
