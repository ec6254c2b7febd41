"""Many sessions, a crash with live ones, a restart, and nothing left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from pathlib import Path

import pytest

from agentcube import AgentCube, AsyncAgentCube
from agentcube.errors import SessionNotFound
from tests.e2e import harness

pytestmark = [pytest.mark.serial, pytest.mark.timeout(420)]

CREATED = 200
AT_ONCE = 20
LIVE = 50
BACKGROUND = "nohup sh -c 'while :; do date +%s%N > beat; sleep 0.2; done' >/dev/null 2>&1 &"


async def _create_and_delete(server: harness.Server) -> int:
    done = 0
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncAgentCube(url=server.url, api_key=server.api_key) as cube:

        async def one(number: int) -> None:
            nonlocal done
            async with gate:
                session = await cube.sessions.create("CodeInterpreter", "my-interpreter")
                result = await cube.sessions.exec(session.id, ["echo", str(number)])
                assert result.stdout == f"{number}\n"
                await cube.sessions.delete(session.id)
                done += 1

        async with asyncio.TaskGroup() as group:
            for number in range(CREATED):
                group.create_task(one(number))
        assert [s async for s in cube.sessions.list()] == []
    return done


async def _open_live(server: harness.Server) -> dict[str, str]:
    """Live sessions with a file and a background process each: session id to the file's content."""
    contents: dict[str, str] = {}
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncAgentCube(url=server.url, api_key=server.api_key) as cube:

        async def one(number: int) -> None:
            async with gate:
                session = await cube.sessions.create("CodeInterpreter", "my-interpreter")
                await cube.sessions.write_file(session.id, "kept.txt", f"session {number}")
                started = await cube.sessions.exec(session.id, ["bash", "-c", BACKGROUND])
                assert started.exit_code == 0
                contents[session.id] = f"session {number}"

        async with asyncio.TaskGroup() as group:
            for number in range(LIVE):
                group.create_task(one(number))
    return contents


def _everything_is_gone(data_dir: Path, before: Counter[str]) -> None:
    """Whoever adopted our orphans reaps them when it pleases; the kernel ends namespaces a little later."""
    with contextlib.suppress(AssertionError):
        harness.eventually(lambda: harness.census(data_dir) == before, within=30)
    assert harness.census(data_dir) == before


def _is_gone(cube: AgentCube, session_id: str) -> bool:
    try:
        cube.sessions.get(session_id)
    except SessionNotFound:
        return True
    return False


def _beat(cube: AgentCube, session_id: str) -> str:
    return cube.sessions.exec(session_id, ["cat", "beat"]).stdout


def test_sessions_survive_a_crash_and_nothing_is_left_behind(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    before = harness.census(data_dir)
    server = harness.start(data_dir)
    try:
        assert asyncio.run(_create_and_delete(server)) == CREATED
        contents = asyncio.run(_open_live(server))
        server.kill()
        server = harness.start(data_dir)
        with AgentCube(url=server.url, api_key=server.api_key) as cube:
            beats = {id: _beat(cube, id) for id in contents}
            for id, content in contents.items():
                assert cube.sessions.exec(id, ["cat", "kept.txt"]).stdout == content
                harness.eventually(
                    lambda id=id: _beat(cube, id) != beats[id], within=10, what=f"{id} is still"
                )  # type: ignore[misc]
            for id in contents:
                cube.sessions.delete(id)
            assert list(cube.sessions.list()) == []
    finally:
        code = server.stop()
    assert code == 0, server.log.read_text()[-4000:]
    _everything_is_gone(data_dir, before)


def test_a_clean_stop_removes_every_sandbox(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    before = harness.census(data_dir)
    with harness.serving(data_dir) as server, AgentCube(url=server.url, api_key=server.api_key) as cube:
        session = cube.sessions.create("CodeInterpreter", "my-interpreter")
        pids = harness.census(data_dir)["processes"]
        assert pids > before["processes"]
        assert cube.sessions.get(session.id).phase == "Ready"
    _everything_is_gone(data_dir, before)
    assert not os.listdir(data_dir / "sandboxes")


def test_a_clean_stop_ends_sessions_unless_told_to_keep_them(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with (
        harness.serving(data_dir, "--keep") as server,
        AgentCube(url=server.url, api_key=server.api_key) as cube,
    ):
        session = cube.sessions.create("CodeInterpreter", "my-interpreter")
        cube.sessions.write_file(session.id, "kept.txt", "still here")
    with harness.serving(data_dir) as server, AgentCube(url=server.url, api_key=server.api_key) as cube:
        assert cube.sessions.read_file(session.id, "kept.txt") == b"still here"
    with harness.serving(data_dir) as server, AgentCube(url=server.url, api_key=server.api_key) as cube:
        assert _is_gone(cube, session.id)
