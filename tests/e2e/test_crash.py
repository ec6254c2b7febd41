"""Many sessions, a crash with live ones, a restart, and nothing left at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcube import AgentCube, AsyncAgentCube
from agentcube.errors import AgentCubeError, SessionNotFound
from tests.e2e import harness

pytestmark = [pytest.mark.serial, pytest.mark.timeout(420), pytest.mark.usefixtures("orphans")]

CREATED = 200
AT_ONCE = 20
LIVE = 50
SLEEPERS = 12
BACKGROUND = "nohup sh -c 'while :; do date +%s%N > beat; sleep 0.2; done' >/dev/null 2>&1 &"


@pytest.fixture
def orphans() -> Iterator[None]:
    with harness.orphans():
        yield


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
    """The kernel ends processes and namespaces a little later than their last words come."""
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


async def _sleep_and_wake(server: harness.Server, ids: list[str], killed: asyncio.Event) -> None:
    """Put every session to sleep and wake it, over and over, until the server is gone."""
    async with AsyncAgentCube(url=server.url, api_key=server.api_key) as cube:

        async def one(id: str) -> None:
            while not killed.is_set():
                with contextlib.suppress(AgentCubeError):
                    await cube.sessions.suspend(id)
                    await cube.sessions.resume(id)

        async with asyncio.TaskGroup() as group:
            for id in ids:
                group.create_task(one(id))
            await asyncio.sleep(0.5)
            server.kill()
            killed.set()


def test_a_crash_in_the_middle_of_sleep_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    before = harness.census(data_dir)
    server = harness.start(data_dir)
    try:
        with AgentCube(url=server.url, api_key=server.api_key) as cube:
            made = [cube.sessions.create() for _ in range(SLEEPERS)]
            if made[0].raw["sandbox"]["facts"]["sleep"] == "none":
                pytest.skip("no control group of this machine can freeze a sandbox")
            for session in made:
                cube.sessions.write_file(session.id, "kept.txt", session.id)
            cube.sessions.suspend(made[0].id)
        asyncio.run(_sleep_and_wake(server, [s.id for s in made[1:]], asyncio.Event()))
        server = harness.start(data_dir)
        with AgentCube(url=server.url, api_key=server.api_key) as cube:

            def phases() -> set[str]:
                return {s.phase for s in cube.sessions.list()}

            harness.eventually(lambda: phases() <= {"Ready", "Paused"}, within=30)
            assert cube.sessions.get(made[0].id).phase == "Paused"
            for session in made:
                assert cube.sessions.exec(session.id, ["cat", "kept.txt"]).stdout == session.id
            cube.sessions.suspend(made[0].id)
            for session in made:
                cube.sessions.delete(session.id)
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
