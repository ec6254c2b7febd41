"""Requests reach the sandbox they are for, changed only where they must be."""

from typing import Any

import pytest
from tests.integration.router.world import AGENT_PATH, CODE_PATH, OK, SID, Peer, replying, world

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
