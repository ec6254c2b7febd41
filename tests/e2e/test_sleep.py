"""Sessions that sleep on a real server: what they keep, what wakes them, what keeps them awake."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.sync.client import connect

from agentcube import AgentCube
from agentcube.errors import SessionBusy, SessionNotFound, SuspendUnsupported
from tests.e2e import harness
from tests.e2e.agents import STREAMS, write

BEAT = "nohup sh -c 'while :; do date +%s%N > beat; sleep 0.05; done' >/dev/null 2>&1 &"


@pytest.fixture
def cube(server: harness.Server) -> Iterator[AgentCube]:
    with AgentCube(url=server.url, api_key=server.api_key) as client:
        yield client


@pytest.fixture
def sleeper(cube: AgentCube) -> AgentCube:
    """The client of a server that can suspend."""
    session = cube.sessions.create()
    can_sleep = cube.sessions.get(session.id).raw["sandbox"]["facts"]["sleep"] != "none"
    cube.sessions.delete(session.id)
    if not can_sleep:
        pytest.skip("no control group of this machine can freeze a sandbox")
    return cube


def phase(cube: AgentCube, id: str) -> str:
    return cube.sessions.get(id).phase


def history(cube: AgentCube, id: str, last: str, times: int) -> list[str]:
    """The session's phases since it was Ready first, until it has been in `last` that often."""
    seen: list[str] = []
    with cube.sessions.events(id, after=0) as events:
        while seen.count(last) < times:
            seen.append(next(events).phase)
    return seen[seen.index("Ready") :]


def test_a_session_keeps_everything_in_its_sleep_and_a_request_wakes_it(sleeper: AgentCube) -> None:
    cube = sleeper
    session = cube.sessions.create()
    cube.sessions.write_file(session.id, "kept.txt", "still here")
    assert cube.sessions.exec(session.id, ["bash", "-c", BEAT]).exit_code == 0
    for _ in range(2):
        asleep = cube.sessions.suspend(session.id)
        assert (asleep.phase, asleep.reason, asleep.sleep) == ("Paused", "asked", "frozen")
    told = cube.sessions.get(session.id)
    assert told.phase == "Paused"  # looking at it wakes nobody
    assert told.raw["usage"]["memory_bytes"] > 1 << 20  # frozen: it holds what it held
    assert cube.sessions.exec(session.id, ["cat", "kept.txt"]).stdout == "still here"
    assert phase(cube, session.id) == "Ready"
    first = cube.sessions.read_file(session.id, "beat")
    harness.eventually(lambda: cube.sessions.read_file(session.id, "beat") != first, within=20)
    cube.sessions.suspend(session.id)
    assert cube.sessions.resume(session.id).phase == "Ready"
    assert history(cube, session.id, "Ready", 3) == ["Ready", *["Pausing", "Paused", "Resuming", "Ready"] * 2]
    cube.sessions.delete(session.id)


def test_a_session_falls_asleep_by_itself_and_ends_in_its_sleep(sleeper: AgentCube) -> None:
    cube = sleeper
    session = cube.sessions.create(suspend_after="500ms", idle_timeout=6)
    with cube.sessions.events(session.id) as events:
        told = [(event.phase, event.reason) for event in events]  # to its very end
    assert told == [
        ("Ready", ""),
        ("Pausing", "idle"),
        ("Paused", "idle"),
        ("Deleting", "idle_timeout"),
        ("Deleted", ""),
    ]
    with pytest.raises(SessionNotFound):
        cube.sessions.exec(session.id, ["true"])


def test_a_command_keeps_its_session_awake_and_many_wake_it_together(sleeper: AgentCube) -> None:
    cube = sleeper
    session = cube.sessions.create(suspend_after="500ms")
    assert cube.sessions.exec(session.id, ["sh", "-c", "sleep 4; echo done"]).stdout == "done\n"
    harness.eventually(lambda: phase(cube, session.id) == "Paused", within=30)
    assert history(cube, session.id, "Paused", 1) == [
        "Ready",
        "Pausing",
        "Paused",
    ]  # not before the command's end
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: cube.sessions.exec(session.id, ["echo", str(n)]).stdout, range(8)))
    assert done == [f"{n}\n" for n in range(8)]
    cube.sessions.delete(session.id)


def test_a_session_in_use_is_not_put_to_sleep(sleeper: AgentCube) -> None:
    """Whoever asks is told, or the request wakes it again: never is it cut off."""
    cube = sleeper
    session = cube.sessions.create()
    output: list[str] = []
    running = threading.Thread(
        target=lambda: output.append(
            cube.sessions.exec(session.id, ["sh", "-c", "sleep 2; echo done"]).stdout
        )
    )
    running.start()
    outcomes = set()
    while running.is_alive():
        try:
            outcomes.add(cube.sessions.suspend(session.id).phase)
        except SessionBusy:
            outcomes.add("busy")
        time.sleep(0.1)
    running.join()
    assert output == ["done\n"]
    assert outcomes <= {"busy", "Paused"}
    cube.sessions.delete(session.id)


def test_a_quiet_web_socket_lets_its_session_sleep_and_a_message_wakes_it(
    sleeper: AgentCube, server: harness.Server, agents_dir: Path
) -> None:
    cube = sleeper
    assert server.cli("apply", "-f", str(write(agents_dir, "sleepy", STREAMS))).returncode == 0
    session = cube.sessions.create("AgentRuntime", "sleepy", suspend_after="500ms")
    headers = {"authorization": f"Bearer {server.api_key}", "x-agentcube-session-id": session.id}
    url = server.url.replace("http://", "ws://")
    url += "/v1/namespaces/default/agent-runtimes/sleepy/invocations/socket"
    with connect(url, additional_headers=headers, ping_interval=None) as socket:
        socket.send("hello")
        assert socket.recv(timeout=20) == "hello"
        harness.eventually(lambda: phase(cube, session.id) == "Paused", within=30)
        socket.send("again")
        assert socket.recv(timeout=20) == "again"
    cube.sessions.delete(session.id)


def test_where_nothing_can_suspend_sessions_say_so(cube: AgentCube) -> None:
    session = cube.sessions.create(suspend_after="500ms")
    told = cube.sessions.get(session.id)
    if told.raw["sandbox"]["facts"]["sleep"] != "none":
        assert told.stays_awake == ""
        cube.sessions.delete(session.id)
        return
    assert "control group" in told.stays_awake
    with pytest.raises(SuspendUnsupported, match="control group"):
        cube.sessions.suspend(session.id)
    assert cube.sessions.exec(session.id, ["echo", "awake"]).stdout == "awake\n"
    cube.sessions.delete(session.id)
