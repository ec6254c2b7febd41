"""The client of CodeInterpreter sessions against a server that speaks the wire."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentcube import (
    AgentCubeError,
    AsyncCodeInterpreterClient,
    ClientClosed,
    CommandExecutionError,
    ConnectFailed,
    TransferIncomplete,
)
from agentcube.errors import (
    CapacityExhausted,
    FileNotFound,
    SessionNotFound,
    TemplateNotFound,
    Unauthenticated,
)
from tests.integration.sdk.wire_server import DROP, Answer, WireServer, problem

# [async
pytestmark = pytest.mark.anyio
# async]

API = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/api"


async def test_a_session_lives_as_long_as_the_block(server: WireServer) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url, ttl=60) as client:
        assert client.session_id in server.sessions
        assert repr(client).endswith(f"session={client.session_id}>")
    assert client.session_id is None
    assert server.sessions == {}
    made = server.requests("POST", "/v1/code-interpreter")[0]
    assert made.json == {"name": "my-interpreter", "namespace": "default", "ttl": 60, "metadata": {}}
    assert len(made.headers["idempotency-key"]) >= 32
    assert "authorization" not in made.headers


# [async
async def test_create_makes_the_session_at_once(server: WireServer) -> None:
    client = await AsyncCodeInterpreterClient.create(router_url=server.url)
    assert client.session_id in server.sessions
    await client.stop()


async def test_without_a_session_the_error_says_how_to_make_one(server: WireServer) -> None:
    client = AsyncCodeInterpreterClient(router_url=server.url)
    with pytest.raises(ClientClosed, match="async with"):
        await client.list_files()
    await client.stop()


# async]


async def test_an_existing_session_is_used_and_deleted(server: WireServer) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url) as first:
        await first.write_file("42", "value.txt")
        async with AsyncCodeInterpreterClient(router_url=server.url, session_id=first.session_id) as second:
            assert [f["name"] for f in await second.list_files()] == ["value.txt"]
        assert server.sessions == {}
    assert len(server.requests("POST", "/v1/code-interpreter")) == 1


async def test_every_call_carries_session_and_token(server: WireServer) -> None:
    server.api_key = "key-1"
    async with AsyncCodeInterpreterClient(router_url=server.url, auth_token="key-1") as client:
        await client.execute_command("true")
        call = server.requests("POST", f"{API}/execute")[0]
        assert call.headers["x-agentcube-session-id"] == client.session_id
    assert {s.headers["authorization"] for s in server.seen} == {"Bearer key-1"}


async def test_execute_command_splits_words_and_returns_output(server: WireServer) -> None:
    server.executed["stdout"] = "hällo\n"
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        assert await client.execute_command("echo 'a b' c", timeout=1.5) == "hällo\n"
        assert await client.execute_command(["ls", "-l"]) == "hällo\n"
    first, second = server.requests("POST", f"{API}/execute")
    assert first.json == {"command": ["echo", "a b", "c"], "timeout": "1500ms"}
    assert second.json == {"command": ["ls", "-l"], "timeout": "120s"}


async def test_an_exit_code_is_an_exception_or_a_result(server: WireServer) -> None:
    server.executed |= {"stdout": "some", "stderr": "bad", "exit_code": 3}
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        with pytest.raises(CommandExecutionError, match=r"exit 3.*bad") as caught:
            await client.execute_command("false")
        assert (caught.value.exit_code, caught.value.stderr, caught.value.command) == (3, "bad", "false")
        result = await client.execute_command_result("false")
        assert result == {"stdout": "some", "stderr": "bad", "exit_code": 3}


async def test_run_code_writes_a_script_and_runs_it(server: WireServer) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        assert await client.run_code("python", "print(1)") == "print(1)"
        assert await client.run_code("Bash", "echo hi") == "echo hi"
        python, bash = (s.json["command"] for s in server.requests("POST", f"{API}/execute"))
        assert (python[0], bash[0]) == ("python3", "bash")
        assert python[1].endswith(".py")
        assert bash[1].endswith(".sh")
        with pytest.raises(ValueError, match="cobol"):
            await client.run_code("cobol", "DISPLAY 1")


async def test_newlines_escaped_twice_are_repaired(server: WireServer) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        assert await client.run_code("python", "a = 1\\nprint(a)") == "a = 1\nprint(a)"
        assert await client.run_code("python", 'print("a\\nb")') == 'print("a\\nb")'


async def test_files_go_up_and_down_unchanged(server: WireServer, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    there, back = tmp_path / "there.bin", tmp_path / "new" / "dir" / "back.bin"
    there.write_bytes(data)
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        await client.upload_file(str(there), "in/dätä.bin")
        await client.download_file("in/dätä.bin", str(back))
        assert server.modes["in/dätä.bin"] == "0644"
        listed = await client.list_files(".")
        assert listed[0]["size"] == len(data)
        assert listed[0]["is_dir"] is False
    assert back.read_bytes() == data
    assert sorted(p.name for p in back.parent.iterdir()) == ["back.bin"]


async def test_an_absent_file_leaves_nothing_behind(server: WireServer, tmp_path: Path) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        with pytest.raises(FileNotFound, match="nothing"):
            await client.download_file("nothing", tmp_path / "d" / "x")
        with pytest.raises(FileNotFoundError):
            await client.upload_file(tmp_path / "absent", "x")
    assert not (tmp_path / "d").exists()


async def test_a_download_that_breaks_off_keeps_the_old_file(server: WireServer, tmp_path: Path) -> None:
    local = tmp_path / "f"
    local.write_text("old")
    server.script("GET", f"{API}/files/f", Answer(200, b"half", promise=1000))
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        assert client.session_id
        with pytest.raises(TransferIncomplete, match="download f"):
            await client.download_file("f", local)
    assert local.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]


async def test_dots_cannot_reach_another_route(server: WireServer, tmp_path: Path) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        with pytest.raises(FileNotFound):
            await client.download_file("../../../execute", tmp_path / "x")
        assert server.seen[-1].path == f"{API}/files/execute"


async def test_creation_is_repeated_with_the_same_key(server: WireServer) -> None:
    again = problem(503, "capacity_exhausted", "no room", retryable=True, retry_after="0")
    server.script("POST", "/v1/code-interpreter", DROP, again)
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        assert client.session_id in server.sessions
    keys = {s.headers["idempotency-key"] for s in server.requests("POST", "/v1/code-interpreter")}
    assert len(server.requests("POST", "/v1/code-interpreter")) == 3
    assert len(keys) == 1


async def test_an_answer_that_was_lost_does_not_make_a_second_session(server: WireServer) -> None:
    real = server.answer

    def lose_the_first(seen: object) -> Answer:
        answer = real(seen)  # type: ignore[arg-type]
        return DROP if len(server.seen) == 1 else answer

    server.answer = lose_the_first  # type: ignore[method-assign]
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        assert list(server.sessions) == [client.session_id]


async def test_no_room_for_ever_is_that_error(server: WireServer) -> None:
    full = problem(503, "capacity_exhausted", "no room", retryable=True, retry_after="0")
    server.script("POST", "/v1/code-interpreter", *[full] * 9)
    with pytest.raises(CapacityExhausted, match="no room") as caught:
        async with AsyncCodeInterpreterClient(router_url=server.url):
            pass
    assert caught.value.context["request_id"] == "req-1"
    assert len(server.seen) == 3


async def test_a_command_is_never_run_twice(server: WireServer) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        server.script("POST", f"{API}/execute", DROP)
        with pytest.raises(AgentCubeError, match="execute rm") as caught:
            await client.execute_command("rm x")
        assert caught.value.code == "connection_lost"
        assert len(server.requests("POST", f"{API}/execute")) == 1


async def test_a_command_that_the_router_turned_away_is_sent_again(server: WireServer) -> None:
    waking = problem(
        503, "unavailable", "resuming", retryable=True, retry_after="0", agentcube_error="router"
    )
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        server.script("POST", f"{API}/execute", waking)
        assert await client.execute_command("true") == ""
        assert len(server.requests("POST", f"{API}/execute")) == 2


async def test_writing_is_repeated_after_a_lost_connection(server: WireServer, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 1000)
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        server.script("POST", f"{API}/files", DROP, DROP)
        await client.upload_file(tmp_path / "f", "f")
        assert server.files[str(client.session_id)]["f"] == b"x" * 1000


async def test_errors_come_back_as_the_class_the_server_raised(server: WireServer) -> None:
    server.script(
        "POST", "/v1/code-interpreter", problem(404, "template_not_found", "no CodeInterpreter default/x")
    )
    with pytest.raises(TemplateNotFound, match="default/x"):
        async with AsyncCodeInterpreterClient("x", router_url=server.url):
            pass
    server.api_key = "secret"
    with pytest.raises(Unauthenticated, match="AGENTCUBE_API_KEY"):
        async with AsyncCodeInterpreterClient(router_url=server.url):
            pass


async def test_a_session_that_is_gone_stops_without_error(server: WireServer) -> None:
    async with AsyncCodeInterpreterClient(router_url=server.url) as client:
        server.sessions.clear()
        with pytest.raises(SessionNotFound):
            await client.list_files()
        await client.stop()
        await client.stop()
        with pytest.raises(ClientClosed):
            await client.list_files()


async def test_the_blocks_own_error_is_not_hidden_by_a_failing_stop(server: WireServer) -> None:
    server.script("DELETE", "/v1/code-interpreter/sessions/.*", *[problem(500, "internal", "broken")] * 3)
    with pytest.raises(ZeroDivisionError):
        async with AsyncCodeInterpreterClient(router_url=server.url):
            raise ZeroDivisionError
    with pytest.raises(AgentCubeError, match="broken"):
        async with AsyncCodeInterpreterClient(router_url=server.url) as client:
            pass
    assert client.session_id is not None


async def test_nobody_there_says_what_to_do() -> None:
    with pytest.raises(ConnectFailed, match="agentcube up"):
        async with AsyncCodeInterpreterClient(router_url="http://127.0.0.1:9"):
            pass


async def test_an_unclosed_client_warns(server: WireServer) -> None:
    client = AsyncCodeInterpreterClient(router_url=server.url, session_id="s-1")
    with pytest.warns(ResourceWarning, match="dropped without stop"):
        client.__del__()
    client.session_id = None
    await client.stop()
