"""Processes of a session, as any HTTP client sees them: through the server, in a real sandbox."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import statistics
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from tests.e2e import harness

INTERPRETER = {"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"}
Event = dict[str, Any]


class Session:
    """A session and its processes."""

    def __init__(self, http: httpx2.Client, id: str) -> None:
        self.http = http
        self.path = f"/v1/sessions/{id}/processes"

    def post(self, path: str = "", /, content: bytes | None = None, **body: Any) -> httpx2.Response:
        if content is not None:
            return self.http.post(self.path + path, content=content)
        return self.http.post(self.path + path, json=body)

    def start(self, **body: Any) -> str:
        answer = self.post(background=True, **body)
        assert answer.status_code == 201, answer.text
        id: str = answer.json()["id"]
        assert answer.headers["location"] == f"processes/{id}"
        return id

    def get(self, path: str) -> Any:
        answer = self.http.get(self.path + path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @contextlib.contextmanager
    def stream(self, method: str, path: str = "", /, **body: Any) -> Iterator[Iterator[Event]]:
        sent = {"json": body} if method == "POST" else {}
        with self.http.stream(method, self.path + path, **sent) as answer:  # type: ignore[arg-type]
            assert answer.status_code == 200, answer.read()
            lines = (json.loads(line) for line in answer.iter_lines())
            yield (event for event in lines if event["event"] != "ping")

    def events(self, query: str = "", /, **body: Any) -> list[Event]:
        with self.stream("POST", query, **body) as events:
            return list(events)

    def refused(self, answer: httpx2.Response) -> tuple[int, str]:
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["error"] == problem["detail"] != ""
        return answer.status_code, problem["code"]


@pytest.fixture(scope="module")
def session(server: harness.Server) -> Iterator[Session]:
    headers = {"authorization": f"Bearer {server.api_key}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=120) as http:
        id = http.post("/v1/sessions", json=INTERPRETER).json()["id"]
        yield Session(http, id)
        assert http.delete(f"/v1/sessions/{id}").status_code == 204


def text(events: list[Event], stream: str = "stdout") -> str:
    return "".join(event["data"] for event in events if event["event"] == stream)


def until(events: Iterator[Event], name: str) -> Event:
    return next(event for event in events if event["event"] == name)


def test_output_comes_as_it_is_written_separately_and_with_the_truth_about_the_end(session: Session) -> None:
    script = "echo one; read x; echo $x >&2; kill -9 $$"
    with session.stream("POST", shell=script, stdin="open") as events:
        id = until(events, "start")["id"]
        assert until(events, "stdout")["data"] == "one\n"
        assert session.post(f"/{id}/stdin", b"two\n").json() == {"offset": 4}
        assert until(events, "stderr")["data"] == "two\n"
        exit = until(events, "exit")
    assert (exit["exit_code"], exit["signal"], exit["stdout"], exit["stderr"]) == (137, "SIGKILL", 4, 4)
    assert session.get(f"/{id}")["state"] == "exited"


def test_every_byte_is_exact(session: Session) -> None:
    script = "import os; os.write(1, bytes(range(256)) * 4096)"
    events = session.events("?encoding=base64", command=["python3", "-c", script])
    data = b"".join(base64.b64decode(e["data_base64"]) for e in events if e["event"] == "stdout")
    assert data == bytes(range(256)) * 4096
    assert text(session.events(shell=r"printf 'a\377\303\251'")) == "a\ufffdé"


def test_from_the_programs_write_to_the_client_takes_milliseconds(session: Session) -> None:
    script = (
        "import os, time\nfor _ in range(50): os.write(1, b'%d ' % time.monotonic_ns()); time.sleep(0.01)"
    )
    delays: list[float] = []
    with session.stream("POST", command=["python3", "-c", script]) as events:
        for event in events:
            now = time.monotonic_ns()
            delays.extend(now - int(written) for written in event.get("data", "").split())
    assert len(delays) == 50
    assert statistics.median(delays) < 500e6, "output was held back"  # 0.4 ms on a machine that is quiet


def test_a_lost_connection_costs_nothing(session: Session, server: harness.Server) -> None:
    """Cut without warning wherever it is, the client goes on from the offset it has."""
    wanted = "".join(f"{n}\n" for n in range(1, 300_001))
    got, id, last = bytearray(), "", ""
    body = json.dumps({"shell": "seq 1 300000", "grace": "60s"})
    request = f"POST {session.path}?encoding=base64 HTTP/1.1\r\nContent-Length: {len(body)}"
    for cut_after in (200, 100_000, 300_000, *([1 << 40] * 6)):
        with _raw(server, request, body) as connection:
            for event in _events(connection, cut_after):
                last, id = event["event"], event.get("id", id)
                if last == "stdout":
                    assert event["offset"] == len(got)
                    got += base64.b64decode(event["data_base64"])
        if last == "exit":
            break
        body, request = "", f"GET {session.path}/{id}/output?encoding=base64&stdout={len(got)} HTTP/1.1"
    assert last == "exit"
    assert got.decode() == wanted


@contextlib.contextmanager
def _raw(server: harness.Server, request: str, body: str = "") -> Iterator[socket.socket]:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"{request}\r\nHost: {host}\r\nAuthorization: Bearer {server.api_key}\r\n\r\n{body}"
        connection.sendall(head.encode())
        yield connection


def _events(connection: socket.socket, cut_after: int) -> Iterator[Event]:
    """The events in the chunks of an answer, until so many bytes of them have come."""
    with connection.makefile("rb") as file:
        assert b" 200 " in file.readline()
        while cut_after > 0 and (line := file.readline()) != b"0\r\n" and line:
            if line.startswith(b"{"):
                cut_after -= len(line)
                yield json.loads(line)


def test_a_client_that_stops_reading_slows_only_itself(session: Session, server: harness.Server) -> None:
    body = json.dumps({"shell": "seq 1 3000000"})
    with _raw(server, f"POST {session.path} HTTP/1.1\r\nContent-Length: {len(body)}", body) as connection:
        events = _events(connection, 1 << 40)
        id, end = next(events)["id"], -1
        while (now := session.get(f"/{id}")["stdout"]["end"]) != end:
            end = now
            assert text(session.events(shell="sleep 0.2; echo others go on")) == "others go on\n"
        exit = next(event for event in events if event["event"] == "exit")
    assert (exit["exit_code"], exit["stdout"]) == (0, 22_888_896)
    assert end < exit["stdout"]


def test_a_process_whose_client_goes_away_dies_and_one_in_the_background_does_not(
    session: Session, server: harness.Server
) -> None:
    body = json.dumps({"shell": "sleep 1000 & sleep 1000"})
    with _raw(server, f"POST {session.path} HTTP/1.1\r\nContent-Length: {len(body)}", body) as connection:
        id = next(_events(connection, 1 << 40))["id"]
        reset = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
    background = session.start(command=["sleep", "1000"])
    ended = session.get(f"/{id}/wait?timeout=60s")
    assert ended["state"] == "exited"
    assert "client went away" in ended["error"]
    assert session.get(f"/{background}")["state"] == "running"
    assert text(session.events(shell="grep -lx sleep /proc/[0-9]*/comm | wc -l")) == "1\n"
    assert session.http.delete(f"{session.path}/{background}").status_code == 204
    assert text(session.events(shell="grep -lx sleep /proc/[0-9]*/comm | wc -l")) == "0\n"


def test_a_hundred_at_once(session: Session) -> None:
    def one(number: int) -> tuple[str, int]:
        events = session.events(
            shell="echo up >>together; while [ $(wc -l <together) -lt 100 ]; do sleep 0.5; done; "
            f"echo {number}; exit {number}"
        )
        return text(events), events[-1]["exit_code"]

    with ThreadPoolExecutor(100) as pool:
        results = list(pool.map(one, range(100)))
    assert results == [(f"{number}\n", number) for number in range(100)]


def test_a_terminal_works_inside(session: Session) -> None:
    env = {"PS1": "ready> "}
    command = ["bash", "--norc", "--noprofile", "-i"]
    with session.stream("POST", command=command, pty={"cols": 101, "rows": 31}, env=env) as events:
        id, got = until(events, "start")["id"], ""

        def expect(wanted: str) -> str:
            """What comes up to `wanted`; what is behind it is for the next one."""
            nonlocal got
            while wanted not in got:
                got += until(events, "stdout")["data"]
            shown, _, got = got.partition(wanted)
            return shown

        expect("ready> ")
        session.post(f"/{id}/stdin", b"stty size; tty; echo $TERM\n")
        assert "31 101\r\n/dev/pts/" in expect("xterm-256color\r\n")
        expect("ready> ")
        assert session.post(f"/{id}/resize", cols=120, rows=40).json()["pty"] == {"cols": 120, "rows": 40}
        session.post(f"/{id}/stdin", b"stty size\n")
        expect("40 120\r\n")
        expect("ready> ")
        session.post(f"/{id}/stdin", b"sleep 1000\n")
        # Only what is in the foreground is interrupted: its group is the terminal's (proc_pid_stat(5)).
        look = "cat /proc/[0-9]*/stat | while read -r _ name _ _ group _ _ front _; do "
        look += 'test "$name $group" = "(sleep) $front" && echo there; done; true'
        harness.eventually(lambda: text(session.events(shell=look)) == "there\n", within=60)
        session.post(f"/{id}/stdin", b"\x03")
        expect("ready> ")  # an end of file that comes before bash reads again is the sleeper's, and lost
        session.post(f"/{id}/stdin?close=true", b"")
        assert until(events, "exit")["exit_code"] == 130  # bash's own: the last command was interrupted


def test_there_are_enough_terminals_and_a_limit(session: Session) -> None:
    ids = []
    while (answer := session.post(command=["sleep", "1000"], pty={}, background=True)).status_code == 201:
        ids.append(answer.json()["id"])
    assert session.refused(answer) == (429, "limit_exceeded")
    assert len(ids) >= 60
    for id in ids:
        assert session.http.delete(f"{session.path}/{id}").status_code == 204
    assert session.events(shell="tty", pty={})[-1]["exit_code"] == 0


def test_signals_timeouts_and_lists(session: Session) -> None:
    id = session.start(shell="trap 'echo got it; exit 9' USR1; echo up; while :; do sleep 0.01; done")
    with session.stream("GET", f"/{id}/output") as events:
        until(events, "stdout")
        assert session.post(f"/{id}/signal", signal="USR1").status_code == 200
        assert until(events, "stdout")["data"] == "got it\n"
        assert until(events, "exit")["exit_code"] == 9
    exit = session.events(shell="sleep 1000 & sleep 1000", timeout="200ms")[-1]
    assert (exit["exit_code"], exit["timed_out"]) == (124, True)
    assert id in [one["id"] for one in session.get("")["processes"]]


def test_they_are_the_users_and_the_workspace_is_theirs(session: Session) -> None:
    script = "id -un; pwd; touch mine && stat -c %U mine; kill -9 1; cat /proc/1/environ | wc -c; exit 0"
    events = session.events(shell=script)
    assert text(events) == "sandbox\n/workspace\nsandbox\n0\n"
    assert session.get("")["processes"]  # PicoD lives


def test_http_1_0_and_server_sent_events(session: Session, server: harness.Server) -> None:
    body = json.dumps({"command": ["echo", "a"]})
    with _raw(server, f"POST {session.path} HTTP/1.0\r\nContent-Length: {len(body)}", body) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"transfer-encoding" not in answer.lower()
    assert json.loads(answer.splitlines()[-1])["event"] == "exit"
    answer2 = session.http.post(
        session.path, json={"command": ["echo", "a"]}, headers={"accept": "text/event-stream"}
    )
    assert answer2.headers["content-type"] == "text/event-stream"
    assert answer2.text.startswith("event: start\ndata: {")


def test_the_path_of_the_go_systems_clients_has_them_too(session: Session) -> None:
    base = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/api/processes"
    header = {"x-agentcube-session-id": session.path.split("/")[3]}
    answer = session.http.post(base, json={"command": ["echo", "a"]}, headers=header)
    assert json.loads(answer.text.splitlines()[-1])["event"] == "exit"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "command"),
        ({"command": []}, "command"),
        ({"command": ["a\0"]}, "NUL"),
        ({"shell": "true", "command": ["true"]}, "command"),
        ({"command": ["true"], "working_dir": "/nowhere"}, "nowhere"),
        ({"command": ["true"], "env": {"A=B": ""}}, "env"),
        ({"command": ["true"], "user": "root"}, "sandbox"),
        ({"command": ["true"], "pty": {"cols": 0, "rows": 0}}, "1 to 4096"),
        ({"command": ["true"], "timeout": "never"}, "timeout"),
        ({"command": ["true"], "grace": "1d"}, "grace"),
        ({"command": ["true"], "colour": "blue"}, "colour"),
    ],
)
def test_bad_orders(session: Session, body: dict[str, Any], says: str) -> None:
    answer = session.post(**body)
    assert session.refused(answer) == (400, "invalid")
    assert says in answer.json()["detail"]


def test_bad_calls(session: Session) -> None:
    gone = "p-0123456789abcdef"
    for answer in (
        session.http.get(f"{session.path}/{gone}"),
        session.http.get(f"{session.path}/{gone}/output"),
        session.http.delete(f"{session.path}/{gone}"),
        session.post(f"/{gone}/signal", signal=9),
    ):
        assert session.refused(answer) == (404, "process_not_found")
    id = session.start(command=["echo", "a"])
    session.get(f"/{id}/wait")
    for path, body, code in (
        ("stdin", {"content": b"x"}, "stdin_closed"),
        ("signal", {"signal": "TERM"}, "process_ended"),
        ("resize", {"cols": 1, "rows": 1}, "not_a_terminal"),
    ):
        assert session.refused(session.post(f"/{id}/{path}", **body)) == (409, code)  # type: ignore[arg-type]
    for path in (
        f"/{id}/output?stdout=99",
        f"/{id}/output?stdout=-1",
        f"/{id}/output?encoding=x",
        f"/{id}/wait?timeout=x",
        "?limit=0",
    ):
        assert session.refused(session.http.get(session.path + path)) == (400, "invalid")
    assert session.refused(session.post(f"/{id}/signal", signal="NOPE")) == (400, "invalid")
    assert session.refused(session.http.put(session.path, json={})) == (405, "method_not_allowed")
    with session.stream("GET", f"/{id}/output") as events:
        assert text(list(events)) == "a\n"
