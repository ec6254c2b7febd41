"""The management client against a server that speaks the wire."""

from __future__ import annotations

import io
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from agentcube import AsyncAgentCube, ClientClosed, CommandExecutionError, InvalidArgument, TransferIncomplete
from agentcube.errors import BodyTooLarge, Conflict, Invalid, SessionNotFound, TemplateNotFound
from tests.integration.sdk.wire_server import DROP, Answer, WireServer, problem

# [async
pytestmark = pytest.mark.anyio
# async]

MANIFEST = {"kind": "AgentRuntime", "metadata": {"name": "parrot", "namespace": "team"}, "spec": {}}


async def test_a_session_is_made_with_what_was_asked_and_nothing_else(server: WireServer) -> None:
    async with AsyncAgentCube(server.url, "k") as cube:
        session = await cube.sessions.create(
            "AgentRuntime", "parrot", ttl=timedelta(minutes=2), idle_timeout="90s", metadata={"a": "b"}
        )
    assert server.seen[0].json == {
        "kind": "AgentRuntime",
        "namespace": "default",
        "name": "parrot",
        "ttl": 120.0,
        "idle_timeout": "90s",
        "metadata": {"a": "b"},
    }
    assert server.seen[0].headers["authorization"] == "Bearer k"
    assert (session.kind, session.phase, session.owner) == ("AgentRuntime", "Ready", "local")
    assert session.created_at == datetime(2026, 11, 21, 15, 0, 0, 123456, tzinfo=UTC)
    assert session.raw["id"] == session.id


async def test_a_key_of_ones_own_makes_creation_repeatable(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        first = await cube.sessions.create(idempotency_key="key-1")
        again = await cube.sessions.create(idempotency_key="key-1")
        other = await cube.sessions.create()
    assert first.id == again.id != other.id


async def test_lists_are_fetched_page_by_page(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        made = [(await cube.sessions.create()).id for _ in range(5)]
        assert sorted(
            [s.id async for s in cube.sessions.list(kind="CodeInterpreter", page_size=2)]
        ) == sorted(made)
        assert [s.id async for s in cube.sessions.list(kind="AgentRuntime")] == []
        [s async for s in cube.sessions.list(metadata={"a": "b"}, phase="Ready")]
    pages = server.requests("GET", "/v1/sessions")
    assert [p.query for p in pages[:3]] == [
        {"kind": "CodeInterpreter", "limit": "2"},
        {"kind": "CodeInterpreter", "limit": "2", "cursor": "2"},
        {"kind": "CodeInterpreter", "limit": "2", "cursor": "4"},
    ]
    assert pages[-1].query | {"cursor": ""} == {
        "metadata.a": "b",
        "phase": "Ready",
        "limit": "100",
        "cursor": "",
    }


async def test_update_sends_only_what_changes(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        session = await cube.sessions.create()
        await cube.sessions.update(session.id, suspend_after="never", metadata={"gone": None})
        assert server.seen[-1].json == {"suspend_after": None, "metadata": {"gone": None}}
        await cube.sessions.update(session.id, ttl=5, metadata={})
        with pytest.raises(InvalidArgument):
            await cube.sessions.update(session.id, ttl=-1)
    assert server.seen[-1].json == {"ttl": 5, "metadata": {}}


async def test_delete_says_when_there_was_nothing(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        session = await cube.sessions.create()
        await cube.sessions.delete(session.id)
        with pytest.raises(SessionNotFound):
            await cube.sessions.delete(session.id)
        await cube.sessions.delete(session.id, missing_ok=True)
        with pytest.raises(SessionNotFound):
            await cube.sessions.get(session.id)


async def test_a_deletion_whose_answer_was_lost_is_done(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        session = await cube.sessions.create()
        server.script("DELETE", ".*", DROP, problem(404, "session_not_found", "no such session"))
        await cube.sessions.delete(session.id)


async def test_reads_are_repeated_and_changes_are_not(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        session = await cube.sessions.create()
        path = f"/v1/sessions/{session.id}"
        server.script(
            "GET", path, DROP, problem(502, "sandbox_unreachable", "gone", retryable=True, retry_after="0")
        )
        assert (await cube.sessions.get(session.id)).id == session.id
        server.script("GET", path, Answer(200, b'{"id"', promise=100))
        assert (await cube.sessions.get(session.id)).id == session.id
        server.script("PATCH", path, problem(409, "conflict", "changed"))
        with pytest.raises(Conflict):
            await cube.sessions.update(session.id, ttl=5)


async def test_templates_come_and_go(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        assert (await cube.templates.apply(MANIFEST)).created is True
        assert (await cube.templates.apply(MANIFEST)).created is False
        found = await cube.templates.get("AgentRuntime", "parrot", namespace="team")
        assert (found.kind, found.namespace, found.name) == ("AgentRuntime", "team", "parrot")
        assert found.manifest == MANIFEST
        assert [t.name async for t in cube.templates.list("agent-runtimes", namespace="team")] == ["parrot"]
        await cube.templates.delete("AgentRuntime", "parrot", namespace="team")
        with pytest.raises(TemplateNotFound):
            await cube.templates.get("AgentRuntime", "parrot", namespace="team")
        with pytest.raises(InvalidArgument, match=r"metadata\.name"):
            await cube.templates.apply({"kind": "AgentRuntime"})
        with pytest.raises(InvalidArgument, match="Pod"):
            await cube.templates.get("Pod", "x")


async def test_validation_errors_name_the_fields(server: WireServer) -> None:
    wrong = problem(400, "invalid", "the body is invalid")
    wrong.body = wrong.body[:-1] + b', "errors": [{"pointer": "/ttl", "message": "must be positive"}]}'
    server.script("POST", "/v1/sessions", wrong)
    async with AsyncAgentCube(server.url) as cube:
        with pytest.raises(Invalid, match="/ttl: must be positive"):
            await cube.sessions.create()


async def test_pools(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        (pool,) = await cube.pools.list()
    assert (pool.name, pool.target, pool.ready, pool.starting) == ("my-interpreter", 2, 1, 1)
    assert (pool.claims, pool.misses) == (7, 3)


async def test_commands_are_exact_to_the_byte(server: WireServer) -> None:
    server.executed |= {"stderr": "warn", "exit_code": 4, "stdout_truncated": True}
    async with AsyncAgentCube(server.url) as cube:
        session = await cube.sessions.create()
        result = await cube.sessions.exec(
            session.id, ["echo-stdin", "x"], stdin=b"\xff\x00", env={"A": "1"}, working_dir="sub", timeout=3
        )
    assert (result.stdout_bytes, result.stdout, result.stderr) == (b"\xff\x00", "\ufffd\x00", "warn")
    assert (result.exit_code, result.duration_s, result.stdout_truncated) == (4, 0.25, True)
    assert result.started_at == datetime(2026, 11, 21, 15, tzinfo=UTC)
    with pytest.raises(CommandExecutionError, match="warn"):
        result.check()
    assert server.seen[-1].path == f"/v1/sessions/{session.id}/execute"
    assert server.seen[-1].json == {
        "command": ["echo-stdin", "x"],
        "timeout": "3s",
        "stdin_base64": "/wA=",
        "env": {"A": "1"},
        "working_dir": "sub",
        "encoding": "base64",
    }


async def test_files_by_session_id(server: WireServer, tmp_path: Path) -> None:
    async with AsyncAgentCube(server.url) as cube:
        id = (await cube.sessions.create()).id
        written = await cube.sessions.write_file(id, "a b?#%.txt", "text", mode="0755")
        assert (written.name, written.size, server.modes["a b?#%.txt"]) == ("a b?#%.txt", 4, "0755")
        assert await cube.sessions.read_file(id, "/a b?#%.txt") == b"text"
        await cube.sessions.upload_file(id, io.BytesIO(b"xxbytes"), "bytes")
        (tmp_path / "f").write_bytes(b"file")
        await cube.sessions.upload_file(id, tmp_path / "f", "file")
        await cube.sessions.download_file(id, "file", tmp_path / "g")
        assert (tmp_path / "g").read_bytes() == b"file"
        assert [f.name for f in await cube.sessions.list_files(id)] == ["a b?#%.txt", "bytes", "file"]
        with pytest.raises(InvalidArgument):
            await cube.sessions.read_file(id, "/")


async def test_a_pipe_can_be_uploaded(server: WireServer) -> None:
    reading, writing = os.pipe()
    data = b"piped" * 100_000

    def feed() -> None:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(data)

    thread = threading.Thread(target=feed)
    thread.start()
    async with AsyncAgentCube(server.url) as cube:
        id = (await cube.sessions.create()).id
        with os.fdopen(reading, "rb") as pipe:
            await cube.sessions.upload_file(id, pipe, "piped")
    thread.join()
    assert server.files[id]["piped"] == data
    assert "content-length" not in server.seen[-1].headers


async def test_an_upload_over_the_limit_is_that_error(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        id = (await cube.sessions.create()).id
        server.script("POST", ".*/files", problem(413, "body_too_large", "over 32 MiB"))
        with pytest.raises(BodyTooLarge, match="32 MiB"):
            await cube.sessions.write_file(id, "x", b"")


async def test_logs(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        id = (await cube.sessions.create()).id
        assert await cube.sessions.logs(id) == b"both "
        assert await cube.sessions.logs(id, stream="stderr", tail_bytes=9) == b"stderr 9"
        with pytest.raises(InvalidArgument):
            await cube.sessions.logs(id, stream="all")


async def test_a_stream_that_breaks_off_is_not_taken_for_whole(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        id = (await cube.sessions.create()).id
        server.script("GET", f"/v1/sessions/{id}/files/f", Answer(200, b"half", promise=10))
        with pytest.raises(TransferIncomplete):
            await cube.sessions.read_file(id, "f")


async def test_names_cannot_reach_another_route(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        with pytest.raises(SessionNotFound):
            await cube.sessions.get("../pools?x=1#")
        for bad in ("", ".", ".."):
            with pytest.raises(InvalidArgument):
                await cube.sessions.get(bad)
    assert server.seen[-1].path == "/v1/sessions/..%2Fpools%3Fx%3D1%23"


async def test_a_closed_client_says_so(server: WireServer) -> None:
    async with AsyncAgentCube(server.url) as cube:
        pass
    with pytest.raises(ClientClosed, match="get session"):
        await cube.sessions.get("s-1")
    await cube.close()


async def test_an_unclosed_client_warns(server: WireServer) -> None:
    cube = AsyncAgentCube(server.url)
    with pytest.warns(ResourceWarning, match="dropped without close"):
        cube.__del__()
    await cube.close()
