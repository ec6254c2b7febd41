"""`up --router-workers`: several Router processes before one manager, replaced and killed under load."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from agentcube import AgentCube, Sandbox
from agentcube.errors import SessionBusy
from tests.e2e import harness
from tests.e2e.harness import Server, eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with harness.serving(
        tmp_path_factory.mktemp("workers") / "data", "--router-workers", "2", "--pool", "1"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def session(server: Server) -> Iterator[str]:
    with AgentCube(server.url, server.api_key) as cube:
        made = cube.sessions.create()
        yield made.id
        cube.sessions.delete(made.id)


def workers(server: Server) -> list[int]:
    """The Router processes of this server."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == server.process.pid and b"agentcube.up.workers" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except (OSError, ValueError):
            continue
    return sorted(found)


class Client:
    """Plain HTTP on a connection that stays open, so that one worker has it all."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        self._headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}

    def ask(self, method: str, path: str, body: str | None = None) -> tuple[int, bytes]:
        self._connection.request(method, path, body, self._headers)
        response = self._connection.getresponse()
        return response.status, response.read()

    def close(self) -> None:
        self._connection.close()


def test_every_worker_knows_every_session(server: Server, session: str) -> None:
    assert len(workers(server)) == 2
    for _ in range(16):  # the kernel spreads them: all on one worker has a chance of 1 in 32,768
        client = Client(server)
        status, body = client.ask("POST", f"/v1/sessions/{session}/execute", '{"command": ["echo", "hi"]}')
        assert (status, b'"hi\\n"' in body) == (200, True)
        client.close()
    with AgentCube(server.url, server.api_key) as cube:
        other = cube.sessions.create()
        cube.sessions.delete(other.id)
    for _ in range(16):
        client = Client(server)
        assert client.ask("GET", f"/v1/sessions/{other.id}/files")[0] == 404
        client.close()


def test_a_session_sleeps_and_any_worker_wakes_it(server: Server, session: str) -> None:
    with AgentCube(server.url, server.api_key) as cube:
        if cube.sessions.get(session).raw["sandbox"]["facts"]["sleep"] == "none":
            pytest.skip("no control group of this machine can freeze a sandbox")
        for _ in range(4):
            assert cube.sessions.suspend(session).phase == "Paused"
            client = Client(server)
            status, _ = client.ask("POST", f"/v1/sessions/{session}/execute", '{"command": ["true"]}')
            assert status == 200
            client.close()
        # What a worker has sent on when the session is put to sleep, the worker wakes it for.
        running = Client(server)
        asking = threading.Thread(
            target=lambda: done.append(
                running.ask("POST", f"/v1/sessions/{session}/execute", '{"command": ["sleep", "1"]}')[0]
            )
        )
        done: list[int] = []
        asking.start()
        while asking.is_alive():
            with contextlib.suppress(SessionBusy):
                cube.sessions.suspend(session)
            asking.join(0.1)
        assert done == [200]
        running.close()


def test_a_share_link_is_good_at_every_worker(server: Server, session: str) -> None:
    with AgentCube(server.url, server.api_key) as cube:
        link = urlsplit(cube.sessions.ports(session).share(3000).url)
        for _ in range(8):  # the kernel spreads connections among them
            with contextlib.closing(
                http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
            ) as at:
                at.request("GET", f"/?{link.query}", headers={"Host": link.netloc})
                answer = at.getresponse()
                assert (answer.status, answer.getheader("location")) == (303, "/")


def test_workers_are_replaced_without_losing_a_request(server: Server, session: str) -> None:
    before = workers(server)
    stop = threading.Event()
    failures: list[object] = []
    done = [0]

    def load() -> None:
        while not stop.is_set():
            client = Client(server)
            try:
                status, _ = client.ask("GET", f"/v1/sessions/{session}/files")
                done[0] += 1
                if status != 200:
                    failures.append(status)
            except OSError as exc:
                failures.append(exc)
            finally:
                client.close()

    def long() -> None:
        client = Client(server)
        command = '{"command": ["sh", "-c", "sleep 3; echo done"]}'
        status, body = client.ask("POST", f"/v1/sessions/{session}/execute", command)
        if (status, b"done" in body) != (200, True):
            failures.append((status, body))
        client.close()

    threads = [threading.Thread(target=load) for _ in range(2)] + [
        threading.Thread(target=long) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    eventually(lambda: done[0] > 20, within=30)
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: not set(before) & set(workers(server)), within=60, what=server.log.read_text()[-2000:])
    since = done[0]
    eventually(lambda: done[0] > since + 20, within=30)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert len(workers(server)) == 2


def test_a_killed_worker_is_replaced_and_no_session_suffers(server: Server, session: str) -> None:
    before = workers(server)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(workers(server)) == 2 and workers(server) != before, within=60)

    def answered() -> bool:
        client = Client(server)
        try:
            return client.ask("GET", f"/v1/sessions/{session}/files")[0] == 200
        finally:
            client.close()

    # What came to the dead one's socket meanwhile waits there for the new one.
    for _ in range(16):
        assert answered()


def test_streams_of_killed_workers_go_on_or_are_seen_to_be_cut(server: Server, session: str) -> None:
    """The SDK loses nothing and repeats nothing; a client without a grace sees no end, and its program is dead."""
    lines = "for n in $(seq 40); do echo $n; sleep 0.05; done"
    heard: list[list[str]] = [[], []]

    def follow(into: list[str], box: Sandbox) -> None:
        box.commands.run(["sh", "-c", lines], on_stdout=into.append)

    with contextlib.ExitStack() as stack:
        boxes = [
            stack.enter_context(Sandbox.connect(session, url=server.url, api_key=server.api_key))
            for _ in heard
        ]
        plain = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)
        stack.callback(plain.close)
        plain.request(
            "POST",
            f"/v1/sessions/{session}/processes",
            json.dumps({"shell": lines}),
            {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"},
        )
        answer = plain.getresponse()
        id = json.loads(answer.readline())["id"]
        threads = [threading.Thread(target=follow, args=pair) for pair in zip(heard, boxes, strict=True)]
        for thread in threads:
            thread.start()
        eventually(lambda: all(len(said) > 2 for said in heard), within=60)
        before = set(workers(server))
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        events = []
        with contextlib.suppress(http.client.IncompleteRead, ConnectionError):
            while line := answer.readline():
                events.append(json.loads(line)["event"])
        for thread in threads:
            thread.join(120)
    assert ["".join(said) for said in heard] == ["".join(f"{n}\n" for n in range(1, 41))] * 2
    assert "exit" not in events
    assert len(workers(server)) == 2
    assert not before & set(workers(server))

    def ended() -> bool:
        client = Client(server)
        try:
            status, body = client.ask("GET", f"/v1/sessions/{session}/processes/{id}")
        finally:
            client.close()
        return status == 404 or json.loads(body)["state"] == "exited"

    eventually(ended, within=30)


def test_workers_end_with_their_main_process(tmp_path: Path) -> None:
    server = harness.start(tmp_path / "data", "--router-workers", "2", "--pool", "0")
    pids = workers(server)
    assert len(pids) == 2
    server.kill()
    eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), within=30)
    address = urlsplit(server.url)
    with socket.socket() as sock:  # the port is free again
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((str(address.hostname), int(address.port or 0)))


def test_a_port_that_somebody_shares_is_taken_all_the_same(server: Server, tmp_path: Path) -> None:
    port = urlsplit(server.url).port
    with pytest.raises(AssertionError, match="cannot listen"):
        harness.start(tmp_path / "data", "--port", str(port), "--router-workers", "2")
