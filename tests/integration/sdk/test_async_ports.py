"""Ports of a session, and links to them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from agentcube import AsyncAgentCube, InvalidArgument, UnexpectedAnswer
from agentcube.errors import NotFound, SessionNotFound
from agentcube.sdk._core.ports import PortInfo, ShareLink
from tests.integration.sdk.wire_answers import of, problem
from tests.integration.sdk.wire_server import WireServer

# [async
pytestmark = pytest.mark.anyio
# async]

BASE = "/v1/sessions/s/ports"
PORT = {
    "port": 3000,
    "name": "",
    "declared": False,
    "path": f"{BASE}/3000/",
    "url": "http://3000-s.localhost/",
}


async def test_ports_are_exposed_listed_and_withdrawn(server: WireServer) -> None:
    server.script("PUT", f"{BASE}/3000", of(PORT))
    server.script("GET", BASE, of({"items": [PORT, {**PORT, "port": 80, "declared": True, "url": None}]}))
    server.script("DELETE", f"{BASE}/3000", of({}), problem(404, "not_found", "it is not exposed"))
    async with AsyncAgentCube(server.url) as cube:
        ports = cube.sessions.ports("s")
        known = PortInfo(
            port=3000,
            name="",
            declared=False,
            url="http://3000-s.localhost/",
            api_url=f"{server.url}{BASE}/3000/",
        )
        assert await ports.expose(3000) == known
        first, second = await ports.list()
        assert (first, second.port, second.declared, second.url) == (known, 80, True, "")
        await ports.withdraw(3000)
        with pytest.raises(NotFound, match="withdraw port 3000 of session s: it is not exposed"):
            await ports.withdraw(3000)


async def test_a_share_link_is_asked_for_and_told(server: WireServer) -> None:
    answer = {
        "port": 3000,
        "url": "http://x/?agentcube-share=t",
        "token": "t",
        "expires_at": "2026-11-21T15:00:00Z",
    }
    server.script(
        "POST", "/v1/sessions/s/shares", of(answer, 201), of(answer, 201), of({**answer, "url": None}, 201)
    )
    async with AsyncAgentCube(server.url) as cube:
        ports = cube.sessions.sandbox("s").ports
        link = await ports.share(3000, ttl="2h")
        assert link == ShareLink(
            url="http://x/?agentcube-share=t", port=3000, expires_at=datetime(2026, 11, 21, 15, tzinfo=UTC)
        )
        assert server.seen[-1].json == {"port": 3000, "ttl": "2h"}
        await ports.share(3000)
        assert server.seen[-1].json == {"port": 3000}
        with pytest.raises(UnexpectedAnswer, match="--ports-domain"):
            await ports.share(3000)


@pytest.mark.parametrize("port", [0, -1, 65536, True, "80"])
async def test_what_is_no_port_is_not_asked_for(server: WireServer, port: int) -> None:
    async with AsyncAgentCube(server.url) as cube:
        ports = cube.sessions.ports("s")
        for call in (ports.expose, ports.withdraw, ports.share):
            with pytest.raises(InvalidArgument, match="is no port"):
                await call(port)
        assert not server.seen


async def test_a_session_that_is_gone_has_no_ports(server: WireServer) -> None:
    server.script("GET", BASE, problem(404, "session_not_found", "no session s"))
    async with AsyncAgentCube(server.url) as cube:
        with pytest.raises(SessionNotFound):
            await cube.sessions.ports("s").list()
