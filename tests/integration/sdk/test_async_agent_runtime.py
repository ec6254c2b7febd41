"""The client of AgentRuntime sessions against a server that speaks the wire."""

from __future__ import annotations

import pytest

from agentcube import AsyncAgentRuntimeClient, ClientClosed, ConnectionLost, TimedOut, UnexpectedAnswer
from agentcube.errors import Invalid, SandboxUnavailable, StartFailed, TemplateNotFound
from tests.integration.sdk.wire_server import DROP, HANG, Answer, WireServer, problem

# [async
pytestmark = pytest.mark.anyio
# async]

BASE = "/v1/namespaces/team/agent-runtimes/parrot/invocations/"


async def _opened(server: WireServer) -> None:
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as agent:
        assert agent.session_id


async def test_the_session_is_made_whatever_the_agent_answers(server: WireServer) -> None:
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as agent:
        assert agent.session_id in server.sessions
    assert [s.path for s in server.seen] == [BASE]
    assert agent.session_id in server.sessions  # close leaves it to others


async def test_an_agent_that_failed_to_start_still_has_a_session_id(server: WireServer) -> None:
    failed = problem(503, "unavailable", "starting", retryable=True, agentcube_error="router")
    failed.headers["x-agentcube-session-id"] = "s-1"
    server.script("GET", BASE, failed)
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as agent:
        assert agent.session_id == "s-1"


async def test_invoke_posts_json_and_returns_json_or_text(server: WireServer) -> None:
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url, auth_token="k") as agent:
        assert (await agent.invoke({"say": "hällo"}))["echo"] == {"say": "hällo"}
        answer = await agent.invoke([1], path="/v2/ask?deep=1")
        assert answer == {"echo": [1], "query": {"deep": "1"}, "path": ["v2", "ask"]}
        assert await agent.invoke({}, path="text") == "plain text"
        call = server.requests("POST", BASE)[0]
        assert call.headers["x-agentcube-session-id"] == agent.session_id
        assert call.headers["authorization"] == "Bearer k"
        assert call.headers["content-type"] == "application/json"


async def test_stop_deletes_the_session(server: WireServer) -> None:
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as agent:
        await agent.stop()
        await agent.stop()
        assert server.sessions == {}
        with pytest.raises(ClientClosed):
            await agent.invoke({})
    assert server.seen[-1].path.startswith("/v1/agent-runtime/sessions/")


async def test_an_existing_session_is_used(server: WireServer) -> None:
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as first:
        async with AsyncAgentRuntimeClient(
            "parrot", "team", router_url=server.url, session_id=first.session_id
        ) as second:
            await second.invoke({})
        assert len(server.requests("GET", BASE)) == 1


async def test_no_template_no_session(server: WireServer) -> None:
    server.script("GET", BASE, problem(404, "template_not_found", "no AgentRuntime team/parrot"))
    with pytest.raises(TemplateNotFound, match="team/parrot"):
        await _opened(server)


async def test_a_server_that_is_no_router_is_named_as_such(server: WireServer) -> None:
    server.script("GET", BASE, Answer(200, b"<html>welcome</html>"))
    with pytest.raises(UnexpectedAnswer, match="x-agentcube-session-id"):
        await _opened(server)


async def test_an_invocation_is_never_sent_twice(server: WireServer) -> None:
    busy = Answer(503, b"agent is busy")
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as agent:
        server.script("POST", BASE, DROP, busy)
        with pytest.raises(ConnectionLost, match="parrot"):
            await agent.invoke({})
        with pytest.raises(Exception, match="agent is busy"):
            await agent.invoke({})
        assert len(server.requests("POST", BASE)) == 2


async def test_the_agents_errors_have_its_words(server: WireServer) -> None:
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as agent:
        server.script(
            "POST",
            BASE,
            Answer(422, b'{"detail": "say is missing"}'),
            problem(502, "start_failed", "command ended with exit code 9"),
            Answer(502, b"bad gateway"),
        )
        with pytest.raises(Invalid, match="say is missing"):
            await agent.invoke({})
        with pytest.raises(StartFailed, match="exit code 9"):
            await agent.invoke({})
        with pytest.raises(SandboxUnavailable, match="HTTP 502: bad gateway"):
            await agent.invoke({})


async def test_silence_has_a_deadline(server: WireServer) -> None:
    async with AsyncAgentRuntimeClient("parrot", "team", router_url=server.url) as agent:
        server.script("POST", BASE, HANG)
        with pytest.raises(TimeoutError, match=r"said nothing for 0\.05 s") as caught:
            await agent.invoke({}, timeout=0.05)
        assert isinstance(caught.value, TimedOut)


async def test_an_unclosed_client_warns(server: WireServer) -> None:
    agent = AsyncAgentRuntimeClient("parrot", router_url=server.url, session_id="s-1")
    with pytest.warns(ResourceWarning, match="dropped without close"):
        agent.__del__()
    await agent.close()
