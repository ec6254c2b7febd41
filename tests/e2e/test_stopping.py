"""A server that is told to stop does so, whatever it is doing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

from agentcube import AgentCube
from agentcube.errors import AgentCubeError
from tests.e2e import harness

PROMPTLY_S = 15.0  # on a machine that is busy with other tests; alone it takes half a second


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_while_the_environment_is_built(tmp_path: Path, number: signal.Signals) -> None:
    """From an index that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as index:
        env = {
            **os.environ,
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_INDEX_URL": f"http://127.0.0.1:{index.getsockname()[1]}/simple",
        }
        argv = [*harness.CLI, "up", "--port", "0", "--data-dir", str(tmp_path / "data")]
        server = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        index.settimeout(harness.START_WITHIN_S)
        connection, _ = index.accept()  # pip asks
        with connection:
            server.send_signal(number)
            out, err = server.communicate(timeout=PROMPTLY_S)
    assert server.returncode == 0, err
    assert out == b""
    assert b"Traceback" not in err
    left = [p.name for p in (tmp_path / "cache" / "agentcube" / "envs").iterdir()]
    assert all(name.endswith(".lock") for name in left), left


def test_a_second_signal_does_not_wait_for_requests_and_clears_up_all_the_same(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    server = harness.start(data_dir, "--pool", "1")
    failed: list[AgentCubeError] = []
    with AgentCube(url=server.url, api_key=server.api_key) as cube:
        session = cube.sessions.create()

        def wait_long() -> None:
            try:
                cube.sessions.exec(session.id, ["sh", "-c", "touch begun; sleep 600"])
            except AgentCubeError as exc:
                failed.append(exc)

        def begun() -> bool:
            return any(f.name == "begun" for f in cube.sessions.list_files(session.id))

        thread = threading.Thread(target=wait_long)
        thread.start()
        harness.eventually(begun, within=30)
        server.process.send_signal(signal.SIGTERM)
        harness.eventually(lambda: _refuses(server), within=10)
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(harness.STOP_WITHIN_S) == 0
        assert time.monotonic() - asked < PROMPTLY_S
        thread.join(30)
    server.stop()
    assert failed, "the request was cut off and its caller not told"
    assert os.listdir(data_dir / "sandboxes") == []


def _refuses(server: harness.Server) -> bool:
    host, _, port = server.url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return True
    return False


def test_with_streams_and_idle_connections_open(tmp_path: Path) -> None:
    """Clients that hold their connections and never read do not keep the server."""
    data_dir = tmp_path / "data"
    server = harness.start(data_dir, "--pool", "2")
    with AgentCube(url=server.url, api_key=server.api_key) as cube:
        cube.sessions.create()
    host, _, port = server.url.removeprefix("http://").partition(":")
    idle = [socket.create_connection((host, int(port))) for _ in range(10)]
    half = [socket.create_connection((host, int(port))) for _ in range(5)]
    try:
        for connection in half:
            connection.sendall(b"GET /v1/sessions HTTP/1.1\r\nHost: x\r\n")
        idle[0].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert idle[0].recv(100).startswith(b"HTTP/1.1 200")
        asked = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - asked < PROMPTLY_S
    finally:
        for connection in (*idle, *half):
            connection.close()
    assert os.listdir(data_dir / "sandboxes") == []
