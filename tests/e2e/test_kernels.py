"""Kernels in real sandboxes, through the real Router: forked, out of memory, deleted with their daemons."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentcube import AgentCube
from agentcube.drivers.local.environments import Environments
from tests.e2e import harness

pytestmark = pytest.mark.timeout(600)  # the first time the environment is built


class Session:
    """A session, and calls below its path."""

    def __init__(self, server: harness.Server, id: str) -> None:
        self.id = id
        self._server = server
        self._address = urlsplit(server.url).netloc

    def request(self, method: str, path: str, body: Any = None) -> tuple[http.client.HTTPConnection, Any]:
        connection = http.client.HTTPConnection(self._address, timeout=120)
        headers = {"Authorization": f"Bearer {self._server.api_key}"}
        if body is not None:
            body = json.dumps(body)
        connection.request(method, f"/v1/sessions/{self.id}{path}", body, headers)
        return connection, connection.getresponse()

    def call(self, method: str, path: str, body: Any = None) -> Any:
        connection, answer = self.request(method, path, body)
        try:
            data = answer.read()
            assert answer.status < 300, data
            return json.loads(data) if data else None
        finally:
            connection.close()

    def run(self, kernel: str, code: str, **more: Any) -> list[dict[str, Any]]:
        connection, answer = self.request("POST", f"/kernels/{kernel}/execute", {"code": code, **more})
        try:
            assert answer.status == 200, answer.read()
            events = [json.loads(line) for line in answer]
        finally:
            connection.close()
        assert events[-1]["event"] == "end"
        return [event for event in events if event["event"] != "ping"]


@pytest.fixture(scope="module")
def python() -> str:
    return str(Environments().ensure("default") / "bin/python3")


@pytest.fixture
def session(server: harness.Server, python: str) -> Iterator[Session]:
    with AgentCube(url=server.url, api_key=server.api_key) as cube:
        # Until the libraries are loaded kernels are executed, not forked: both are fine, one is to be tested.
        harness.eventually(lambda: "environment loaded" in server.log.read_text(), within=300)
        made = cube.sessions.create()
        try:
            yield Session(server, made.id)
        finally:
            cube.sessions.delete(made.id)


def test_kernels_are_forked_from_loaded_libraries_and_are_the_users(session: Session) -> None:
    kernel = session.call("POST", "/kernels", {"language": "python", "env": {"MINE": "yes"}})
    assert kernel["implementation"].startswith("ipython ")
    code = (
        "import os, sys\nprint('pandas' in sys.modules, os.getppid(), os.environ['MINE'], os.getcwd())\n"
        "print([int(line.split()[1], 16) for line in open('/proc/self/status') if line.startswith('Cap')][:4])\n"
        "print(os.path.exists(sys.executable), sorted(map(int, os.listdir('/proc/self/fd')))[:3])"
    )
    events = session.run(kernel["id"], code)
    text = "".join(event["text"] for event in events if event["event"] == "stdout")
    assert text == "True 1 yes /workspace\n[0, 0, 0, 224]\nTrue [0, 1, 2]\n" or text.startswith(
        "True 1 yes /workspace\n[0, 0, 0, "
    )


def test_tracebacks_of_a_forked_kernel_end_in_the_cell(session: Session) -> None:
    id = session.call("POST", "/kernels", {"language": "python"})["id"]
    for code in ("input('name? ')", "!kill -INT $PPID; sleep 60"):
        (error,) = [event for event in session.run(id, code, timeout="60s") if event["event"] == "error"]
        text = "\n".join(error["traceback"])
        assert "----> 1 " in text
        assert "File " not in text, "what is ours, and how it waits, is nobody's concern"
    session.call("DELETE", f"/kernels/{id}")


def test_a_kernel_without_memory_is_told_and_harms_nobody(session: Session) -> None:
    victim = session.call("POST", "/kernels", {"language": "python"})["id"]
    other = session.call("POST", "/kernels", {"language": "bash"})["id"]
    session.run(other, "calm=1")
    end = session.run(victim, "hoard = []\nwhile True: hoard.append(b'x' * (16 << 20))")[-1]
    if end["status"] != "error":  # where no control group bounds it, the interpreter itself meets the limit
        assert (end["status"], end["state_lost"]) == ("kernel_died", True)
        assert "memory" in end["reason"]
        assert session.call("POST", f"/kernels/{victim}/restart")["state"] == "idle"
    assert session.run(victim, "1")[-1]["status"] == "ok"
    events = session.run(other, "echo $calm")
    assert events[1]["text"] == "1\n"


def test_daemons_of_a_deleted_kernel_are_gone(session: Session) -> None:
    kernel = session.call("POST", "/kernels", {"language": "python"})["id"]
    session.run(kernel, "!setsid -f sleep 301; sleep 302 &")
    session.call("DELETE", f"/kernels/{kernel}")
    left = session.call(
        "POST", "/execute", {"command": ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]}
    )
    assert "sleep 30" not in left["stdout"].replace("cat /proc", "")
