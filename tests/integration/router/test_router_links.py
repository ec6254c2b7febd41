"""Share links: what they open and to whom, which pages may use them, and what ends with them."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.asyncio.server
from websockets.exceptions import ConnectionClosed, InvalidStatus

from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.testing.clock import FakeClock
from tests.integration.router.exposing import (
    OTHER,
    SETTINGS,
    ask,
    cookie,
    expose,
    exposing,
    fields,
    host,
    known,
    share,
)
from tests.integration.router.world import OK, SID, Answer, World, eventually, replying, world

pytestmark = pytest.mark.anyio


async def test_a_share_link_becomes_a_cookie_and_its_token_leaves_the_address() -> None:
    seen: list[Any] = []
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK, seen))
        token = share(port)
        answer = await ask(
            w, f"GET /a%2Fb?x=1&agentcube-share={token}&y=2", host(port), "Sec-Fetch-Site: cross-site"
        )
        assert (answer.status, answer["location"], answer.body) == (303, "/a%2Fb?x=1&y=2", b"")
        assert (answer["cache-control"], answer["referrer-policy"]) == ("no-store", "no-referrer")
        name, *attributes = answer["set-cookie"].split("; ")
        assert name == f"agentcube-share={token}"
        lifetime = next(a for a in attributes if a.startswith("Max-Age="))
        assert 500 < int(lifetime.removeprefix("Max-Age=")) <= 600
        assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Lax", lifetime}
        assert not seen

        answer = await ask(
            w, "GET /a%2Fb?x=1&y=2", host(port), f"Cookie: a=1; {name}; b=2", f"Cookie: {name}"
        )
        assert answer.body == b"ok"
        assert answer["content-security-policy"] == "frame-ancestors 'self'"
        assert fields(Answer(0, seen[0][0].headers, b"", []), "cookie") == ["a=1; b=2"]
        assert w.links.verified == 1
        assert SID in answer["x-agentcube-session-id"]
        assert (await ask(w, f"HEAD /?agentcube-share={token}", host(port))).status == 303
        assert (await ask(w, f"GET /?agentcube-share={token}", host(port)))["location"] == "/"


async def test_over_tls_the_cookie_is_one_that_no_other_host_can_set() -> None:
    trusting = replace(SETTINGS, trusted_proxies=("127.0.0.1",))
    async with world(trusting) as w:
        port = await exposing(w, replying(OK))
        https = "X-Forwarded-Proto: https"
        answer = await ask(w, f"GET /?agentcube-share={share(port)}", host(port), https)
        assert answer["set-cookie"].startswith("__Host-agentcube-share=")
        assert "; Secure" in answer["set-cookie"]
        assert "Domain" not in answer["set-cookie"]
        assert (await ask(w, "GET /", host(port), https, cookie(port))).status == 401
        named = cookie(port).replace("agentcube", "__Host-agentcube", 1)
        assert (await ask(w, "GET /", host(port), https, named)).status == 200
    async with world(SETTINGS) as w:  # nobody else's word counts
        port = await exposing(w, replying(OK))
        answer = await ask(w, f"GET /?agentcube-share={share(port)}", host(port), https)
        assert answer["set-cookie"].startswith("agentcube-share=")


BAD = {
    "of another session": {"session": OTHER},
    "of another port": {"port": 1},
    "of an earlier exposure": {"key": "old"},
    "expired": {"expires_in": -5},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
async def test_a_link_that_is_not_this_ports_is_401_and_nobody_is_asked(changes: dict[str, Any]) -> None:
    seen: list[Any] = []
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK, seen))
        token = share(**{"port": port, **changes})
        for answer in (
            await ask(w, f"GET /?agentcube-share={token}", host(port)),
            await ask(w, "GET /", host(port), f"Cookie: agentcube-share={token}"),
        ):
            assert (answer.status, answer.problem["code"]) == (401, "unauthenticated")
        assert not seen


@pytest.mark.parametrize("token", ["", "x", "%2e", "a/b/c", "é".encode().decode("latin-1"), "x" * 5000])
async def test_what_is_no_token_is_401(token: str) -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        answer = await ask(w, "GET /", host(port), f"Cookie: agentcube-share={token}")
        assert answer.status == 401
        if token.isascii():
            assert (await ask(w, f"GET /?agentcube-share={token}", host(port))).status == 401


async def test_links_to_sessions_that_nobody_knows_cost_the_store_nothing_unless_they_are_signed() -> None:
    async with world(SETTINGS) as w:
        answer = await ask(w, "GET /", host(80, OTHER), cookie(80))
        assert answer.status == 401
        answer = await ask(w, "GET /", host(80, OTHER), cookie(80, session=OTHER))
        assert (answer.status, answer.problem["code"]) == (404, "session_not_found")
        assert (
            await ask(w, f"GET /?agentcube-share={share(80, session=OTHER)}", host(80, OTHER))
        ).status == 404


@pytest.mark.parametrize("path", ["//evil.test/x", "/\\evil.test", "///evil.test", "/\\/evil.test"])
async def test_a_link_leads_nowhere_else(path: str) -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        answer = await ask(w, f"GET {path}?agentcube-share={share(port)}", host(port))
        if answer.status == 303:
            assert answer["location"].startswith("/evil.test")
        else:
            assert answer.status == 400  # the parser takes no backslash


async def test_a_link_is_followed_with_get_alone() -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        answer = await ask(w, f"POST /?agentcube-share={share(port)}", host(port), body=b"x")
        assert (answer.status, answer.problem["code"]) == (405, "method_not_allowed")


async def test_cookies_that_other_hosts_added_neither_let_in_nor_keep_out() -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        bad, good = f"agentcube-share={share(port, session=OTHER)}", f"agentcube-share={share(port)}"
        assert (await ask(w, "GET /", host(port), f"Cookie: {bad}; {bad}; {good}")).status == 200
        assert (await ask(w, "GET /", host(port), f"Cookie: {'; '.join([bad] * 4)}; {good}")).status == 401
        assert (await ask(w, "GET /", host(port), f"Cookie: {bad}")).status == 401


def sibling(port: int) -> str:
    return f"http://{host(port, OTHER)}"


PAGES: list[tuple[str, tuple[str, ...], int]] = [
    # Its own pages, other clients, and links that are followed.
    ("GET /", (), 200),
    ("POST /", ("Origin: http://{own}",), 200),
    ("POST /", ("Origin: https://{own}", "Sec-Fetch-Site: same-origin", "Sec-Fetch-Mode: cors"), 200),
    ("GET /", ("Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"), 200),
    ("GET /", ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"), 200),
    # Pages of other sessions and sites.
    ("POST /", ("Origin: http://{other}",), 403),
    ("POST /", ("Origin: null",), 403),
    ("GET /", ("Origin: http://{own}.evil.test",), 403),
    ("GET /", ("Origin: http://router.test",), 403),
    ("GET /", ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: no-cors", "Sec-Fetch-Dest: image"), 403),
    ("GET /", ("Sec-Fetch-Site: same-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"), 403),
    ("GET /", ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors", "Sec-Fetch-Dest: empty"), 403),
    ("POST /", ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"), 403),
]


@pytest.mark.parametrize(("first", "headers", "status"), PAGES)
async def test_pages_of_other_origins_do_not_use_what_was_shared(
    first: str, headers: tuple[str, ...], status: int
) -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        said = [h.format(own=host(port), other=host(port, OTHER)) for h in headers]
        answer = await ask(w, first, host(port), cookie(port), *said)
        assert answer.status == status
        if status == 403:
            assert answer.problem["code"] == "forbidden"


async def test_a_guest_wakes_the_session_and_one_without_a_link_does_not() -> None:
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK), phase=Phase.PAUSED)
        w.control.wakes_to = replace(known(w), phase=Phase.READY, revision=2)
        assert (await ask(w, "GET /", host(port))).status == 401
        assert (await ask(w, "GET /", host(port), cookie(port, key="old"))).status == 401
        assert w.control.woken == []
        assert (await ask(w, "GET /", host(port), cookie(port))).status == 200
        assert w.control.woken == [SID]


async def test_guests_take_none_of_the_owners_places() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with world(replace(SETTINGS, in_flight_per_subject_max=1)) as w:
        port = await exposing(w, silent)
        peer = await w.connect()
        await peer.write(f"GET / HTTP/1.1\r\nHost: {host(port)}\r\n{cookie(port)}\r\n\r\n".encode())
        await eventually(lambda: w.router.in_flight == 1)
        assert (await ask(w, "GET /", host(port), cookie(port))).status == 429
        assert (await w.ask("GET /v1/sessions", session=None)).status == 503  # no manager here; but let in


async def test_guests_leave_places_in_the_session_to_its_owner() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with world(replace(SETTINGS, in_flight_per_session_max=4)) as w:
        port = await exposing(w, silent)
        request = f"GET / HTTP/1.1\r\nHost: {host(port)}\r\n{cookie(port)}\r\n\r\n".encode()
        for count in (1, 2):
            await (await w.connect()).write(request)
            await eventually(lambda count=count: w.router.in_flight == count)
        refused = await ask(w, "GET /", host(port), cookie(port))
        assert (refused.status, refused.problem["limit"]) == (429, 2)
        for count in (3, 4):
            await (await w.connect()).send(f"GET /v1/sessions/{SID}/ports/{port}/", session=None)
            await eventually(lambda count=count: w.router.in_flight == count)


# WebSockets, and links that end while something is open.


@asynccontextmanager
async def echoing(w: World) -> Any:
    """A session whose exposed port echoes WebSocket messages; the port."""

    async def serve(socket: websockets.asyncio.server.ServerConnection) -> None:
        async for message in socket:
            await socket.send(message)

    async with websockets.asyncio.server.serve(serve, "127.0.0.1", 0) as server:
        yield expose(w, next(iter(server.sockets)).getsockname()[1])


def dialling(w: World, at: str, path: str = "/ws", **headers: str) -> Any:
    return websockets.asyncio.client.connect(
        f"ws://{at}{path}", host="127.0.0.1", port=w.port, additional_headers=headers, proxy=None
    )


async def test_websockets_pass_by_path_and_by_host() -> None:
    async with world(SETTINGS) as w, echoing(w) as port:
        path = f"/v1/sessions/{SID}/ports/{port}/ws"
        shared = {"Cookie": cookie(port).removeprefix("Cookie: "), "Origin": f"http://{host(port)}"}
        for dialled in (
            dialling(w, "router.test", path, Authorization="Bearer alice"),
            dialling(w, host(port), Authorization="Bearer alice"),
            dialling(w, host(port), **shared),
        ):
            async with dialled as client:
                await client.send("hello")
                assert await client.recv() == "hello"
        for refused, status in (
            (dialling(w, host(port), **{**shared, "Origin": sibling(port)}), 403),
            (dialling(w, host(port)), 401),
            (dialling(w, "router.test", path), 401),
        ):
            with pytest.raises(InvalidStatus) as caught:
                await refused
            assert caught.value.response.status_code == status


async def test_a_link_that_holds_no_longer_keeps_neither_a_good_one_nor_the_owner_out() -> None:
    """Cookies stay in browsers, and a page of a sibling host can plant some."""
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        old, good = (f"agentcube-share={share(port, key=key)}" for key in ("withdrawn", "key"))
        for _ in range(2):  # the Router does not know the session yet, and knows it
            assert (await ask(w, "GET /", host(port), f"Cookie: {old}; {good}")).status == 200
            assert (await ask(w, "GET /", host(port), f"Cookie: {old}", token="alice")).status == 200
            assert (await ask(w, "GET /", host(port), f"Cookie: {old}")).status == 401
            assert (await ask(w, "GET /", host(port), f"Cookie: {old}", token="bob")).status == 404


@pytest.mark.parametrize("how", ["withdrawn", "shared anew", "expired"])
async def test_what_a_link_opened_ends_with_it_and_the_owners_goes_on(how: str) -> None:
    clock = FakeClock(datetime.now(UTC))
    async with world(SETTINGS, clock=clock) as w, echoing(w) as port:
        shared = {"Cookie": cookie(port).removeprefix("Cookie: ")}
        async with (
            dialling(w, host(port), **shared) as guest,
            dialling(w, host(port), Authorization="Bearer alice") as owner,
        ):
            await guest.send("in")
            assert await guest.recv() == "in"
            if how == "withdrawn":
                w.sessions.change(replace(known(w), exposed={}, revision=2))
            elif how == "shared anew":
                w.sessions.change(replace(known(w), exposed={port: "new"}, revision=2))
            else:
                clock.advance(timedelta(seconds=601))
            async with asyncio.timeout(10):
                with pytest.raises(ConnectionClosed):
                    await guest.recv()
            await owner.send("still")
            assert await owner.recv() == "still"
        assert (await ask(w, "GET /", host(port), f"Cookie: {shared['Cookie']}")).status == 401


async def test_a_connection_that_a_guest_used_is_anybodys_afterwards() -> None:
    """A proxy brings the requests of many on one; what waits for its session is not judged by who was before."""
    async with world(SETTINGS) as w:
        port = await exposing(w, replying(OK))
        asleep = replace(known(w), id=SessionId(OTHER), phase=Phase.PAUSED, exposed={})
        w.add(asleep)
        w.control.gate.clear()
        w.control.wakes_to = replace(asleep, phase=Phase.READY, exposed={port: "key"}, revision=2)
        peer = await w.connect()
        await peer.write(f"GET / HTTP/1.1\r\nHost: {host(port)}\r\n{cookie(port)}\r\n\r\n".encode())
        assert (await peer.answer()).status == 200
        await peer.send(f"GET /v1/sessions/{OTHER}/ports/{port}/", session=None)
        await eventually(lambda: w.control.woken == [OTHER])
        swept = w.router._engine.now
        await eventually(lambda: w.router._engine.now > swept + 0.1)
        w.control.gate.set()
        assert (await peer.answer()).status == 200


# Without authentication.


async def test_without_authentication_pages_of_others_are_refused_and_links_are_followed() -> None:
    async with world(replace(SETTINGS, local_only=True)) as w:
        port = await exposing(w, replying(OK))
        own = (f"Origin: http://{host(port)}", "Sec-Fetch-Site: same-origin")
        assert (await ask(w, "POST /", host(port), *own, token="alice")).status == 200
        other = (f"Origin: {sibling(port)}", "Sec-Fetch-Site: same-site")
        assert (await ask(w, "POST /", host(port), *other, token="alice")).status == 403
        page = (f"Origin: http://{host(port)}", "Sec-Fetch-Site: cross-site")
        assert (await ask(w, "GET /v1/sessions", f"localhost:{w.port}", *page, token="alice")).status == 403
        followed = ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document")
        assert (await ask(w, "GET /", host(port), *followed, token="alice")).status == 403
        assert (await ask(w, f"GET /?agentcube-share={share(port)}", host(port), *followed)).status == 303
        assert (await ask(w, "GET /", host(port), *followed, cookie(port))).status == 200
