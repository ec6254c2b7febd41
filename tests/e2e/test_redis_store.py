"""`agentcube up --store redis://…`: sessions outlive the server, and the store's absence is survived."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcube import AgentCube
from agentcube.errors import AgentCubeError, StoreFailed
from agentcube.testing.redis_server import RedisServer, running
from tests.e2e import harness
from tests.redis_servers import DURABLE, program

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with running(program("valkey"), tmp_path / "valkey", *DURABLE) as server:
        yield server


def _keys(redis: RedisServer, pattern: str) -> list[bytes]:
    found: list[bytes] = redis.command("KEYS", f"{{agentcube}}:{pattern}")
    return found


def test_sessions_outlive_their_server_and_the_store_s_absence(redis: RedisServer, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    with_redis = ("--store", redis.url, "--pool", "1")
    server = harness.start(data_dir, *with_redis)
    with AgentCube(url=server.url, api_key=server.api_key) as cube:
        session = cube.sessions.create("CodeInterpreter", "my-interpreter")
        cube.sessions.write_file(session.id, "kept.txt", "kept")
    server.kill()
    assert len(_keys(redis, "s:*")) == 1

    refused = _start_refused(data_dir)
    assert "belong to sessions in another store" in refused
    refused = _start_refused(tmp_path / "other", "--store", redis.url)
    assert "live on another machine or in another data directory" in refused

    server = harness.start(data_dir, *with_redis)
    with AgentCube(url=server.url, api_key=server.api_key) as cube:
        assert cube.sessions.exec(session.id, ["cat", "kept.txt"]).stdout == "kept"
        redis.kill()
        assert cube.sessions.exec(session.id, ["cat", "kept.txt"]).stdout == "kept"
        with pytest.raises(StoreFailed):
            cube.sessions.create("CodeInterpreter", "my-interpreter")
        redis.start()
        harness.eventually(lambda: _creates(cube), within=60)
    assert server.stop() == 0
    assert _keys(redis, "s:*") == _keys(redis, "home") == []
    assert not (data_dir / "sessions-in").exists()


def test_a_server_whose_store_is_away_when_it_stops_leaves_its_sessions_to_the_next(
    redis: RedisServer, tmp_path: Path
) -> None:
    data_dir = tmp_path / "data"
    server = harness.start(data_dir, "--store", redis.url, "--pool", "0")
    with AgentCube(url=server.url, api_key=server.api_key) as cube:
        session = cube.sessions.create("CodeInterpreter", "my-interpreter")
    redis.kill()
    assert server.stop() == 0
    refused = _start_refused(data_dir, "--store", redis.url)
    assert "connection refused" in refused
    redis.start()
    with (
        harness.serving(data_dir, "--store", redis.url, "--pool", "0") as server,
        AgentCube(url=server.url, api_key=server.api_key) as cube,
    ):
        assert cube.sessions.exec(session.id, ["echo", "here"]).stdout == "here\n"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://127.0.0.1:1", "the session store at 127.0.0.1:1 cannot be used: connection refused"),
        ("postgres://h", "the store's address is not usable"),
    ],
)
def test_a_store_that_is_none_is_refused_at_once(url: str, reason: str, tmp_path: Path) -> None:
    assert reason in _start_refused(tmp_path / "data", "--store", url)


def test_the_doctor_tries_a_store(redis: RedisServer) -> None:
    done = subprocess.run(
        [*harness.CLI, "doctor", "--store", redis.url, "-o", "json"], capture_output=True, timeout=60
    )
    assert b"Valkey 9" in done.stdout
    assert b"append-only file; 0 replicas; answers in" in done.stdout
    assert redis.command("DBSIZE") == 0


def _start_refused(data_dir: Path, *options: str) -> str:
    """What a start says that must be refused."""
    done = subprocess.run(
        [*harness.CLI, "up", "--port", "0", "--data-dir", str(data_dir), *options],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    return done.stderr


def _creates(cube: AgentCube) -> bool:
    try:
        created = cube.sessions.create("CodeInterpreter", "my-interpreter")
    except AgentCubeError:
        return False
    cube.sessions.delete(created.id)
    return True
