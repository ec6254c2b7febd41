"""Without authentication a browser must not be everybody's way in (CSRF, DNS rebinding)."""

from dataclasses import replace

import pytest

from tests.integration.router.world import AGENT_PATH, FAST, OK, replying, world

pytestmark = pytest.mark.anyio

OPAQUE_POLICY = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"
OPEN = replace(FAST, local_only=True)


async def status(*headers: str, host: str = "127.0.0.1:8080", settings=OPEN) -> int:
    async with world(settings) as w:
        seen: list = []
        w.agent(await w.tcp(replying(OK, seen)))
        peer = await w.connect()
        lines = [f"POST {AGENT_PATH}/ HTTP/1.1", f"Host: {host}", "Authorization: Bearer alice", *headers]
        await peer.write("\r\n".join((*lines, f"x-agentcube-session-id: {'s' * 32}", "", "")).encode())
        answer = await peer.answer()
        assert bool(seen) == (answer.status == 200)
        assert answer.status == 200 or answer.problem["code"] == "forbidden"
        return answer.status


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "LOCALHOST", "[::1]:8080", "10.0.0.7"])
async def test_clients_and_pages_of_our_own_are_served(host: str) -> None:
    assert await status(host=host) == 200
    assert await status(f"Origin: http://{host}", "Sec-Fetch-Site: same-origin", host=host) == 200
    assert await status("Sec-Fetch-Site: none", host=host) == 200


@pytest.mark.parametrize(
    "headers",
    [
        ("Origin: http://evil.example", "Content-Type: text/plain"),
        ("Origin: null",),
        ("Origin: http://127.0.0.1:3000",),  # another program's page on this machine
        ("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"),
        ("Sec-Fetch-Site: same-site",),
    ],
)
async def test_a_page_of_another_site_is_refused(headers: tuple[str, ...]) -> None:
    assert await status(*headers) == 403


@pytest.mark.parametrize("host", ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example:80"])
async def test_a_page_whose_name_was_rebound_to_us_is_refused(host: str) -> None:
    assert await status(f"Origin: http://{host}", "Sec-Fetch-Site: same-origin", host=host) == 403


async def test_with_authentication_pages_are_not_looked_at() -> None:
    assert await status("Origin: http://app.example", host="router.example", settings=FAST) == 200


async def test_pages_of_agents_are_nobody_where_nobody_is_asked() -> None:
    """They come from the Router's own origin, so nothing else tells them from its user."""
    for settings, opaque in ((OPEN, True), (FAST, False)):
        async with world(settings) as w:
            w.agent(await w.tcp(replying(OK)))
            await w.unix(replying(OK), "manager")
            peer = await w.connect()
            for path, theirs in ((f"{AGENT_PATH}/", True), ("/docs", False)):
                lines = [f"GET {path} HTTP/1.1", "Host: localhost", "Authorization: Bearer alice"]
                await peer.write(
                    "\r\n".join((*lines, f"x-agentcube-session-id: {'s' * 32}", "", "")).encode()
                )
                answer = await peer.answer()
                assert answer.status == 200
                policies = [value for name, value in answer.headers if name == b"content-security-policy"]
                assert policies == ([OPAQUE_POLICY] if opaque and theirs else [])
