"""`run`, `exec` and `cp` where the server misbehaves or the input is bad. tests/e2e shows what works on a real one."""

from __future__ import annotations

import base64
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cli.conftest import Cli
from tests.integration.sdk.wire_server import HANG, Answer, WireServer, problem


@pytest.fixture
def session(server: WireServer) -> str:
    return str(
        server._new({"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"})["id"]
    )


def events(*said: dict[str, Any]) -> Answer:
    """A stream of events."""
    body = "".join(f"{json.dumps(event)}\n" for event in said)
    return Answer(200, body.encode(), {"content-type": "application/x-ndjson"})


def process(out: bytes = b"", err: bytes = b"", exit_code: int = 0, **more: Any) -> Answer:
    """A process from start to end."""
    streams = {"stdout": out, "stderr": err}
    return events(
        {"event": "start", "id": "p-1", "pid": 3, "started_at": "2026-11-21T15:00:00Z"},
        *(
            {"event": name, "offset": 0, "data_base64": base64.b64encode(data).decode()}
            for name, data in streams.items()
            if data
        ),
        {
            "event": "exit",
            "exit_code": exit_code,
            **{name: len(data) for name, data in streams.items()},
            **more,
        },
    )


def scripted(server: WireServer, *answers: Answer) -> None:
    """The next processes; files are always taken."""
    server.script("PUT", ".*/files/.*", *[Answer(201, b'{"name": "x", "size": 1, "mode": "-rw-r--r--"}')] * 9)
    server.script("POST", ".*/processes", *answers)


def test_run_makes_a_session_that_ends_by_itself_should_we_be_killed(cli: Cli, server: WireServer) -> None:
    scripted(server, process(b"1\n", b"warn", 3))
    done = cli("run", "print(1)", "-e", "A=1", "--timeout", "90s", "--no-stdin")
    assert (done.code, done.out, done.err) == (3, b"1\n", b"warn")
    (started,) = server.requests("POST", "/v1/sessions/.*/processes")
    assert started.json["command"][0] == "python3"
    assert started.json["timeout"] == "90s"
    assert started.json["env"] == {"A": "1", "PYTHONUNBUFFERED": "1"}
    made = server.requests("POST", "/v1/sessions")[0].json
    assert (made["ttl"], made["idle_timeout"]) == (390, 60)
    assert server.sessions == {}


def test_the_session_is_deleted_when_the_run_fails(cli: Cli, server: WireServer) -> None:
    scripted(server, problem(502, "sandbox_unreachable", "sandbox died"))
    done = cli("run", "pass", "--no-stdin")
    assert done.code == 1
    assert done.err.count(b"\n") == 1
    assert "sandbox died" in done.error
    assert server.sessions == {}


def test_a_session_that_cannot_be_deleted_is_named_and_the_exit_code_kept(
    cli: Cli, server: WireServer
) -> None:
    scripted(server, process(exit_code=5))
    server.script("DELETE", ".*", *[problem(500, "internal", "broken")] * 3)
    done = cli("run", "pass", "--no-stdin")
    assert done.code == 5
    assert next(iter(server.sessions)) in done.error


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("run",), "give the code"),
        (("run", "1", "-f", "x"), "not both"),
        (("run", "1", "-f", "none.py"), "give the code"),
        (("run", "-f", "none.py"), "none.py"),
        (("run", "1", "-e", "novalue"), "KEY=VALUE"),
        (("run", "1", "--session", "s", "-e", "A=1"), "--env"),
        (("run", "1", "--png", "x.png"), "--keep"),
        (("run", "1", "--language", "cobol"), "cobol"),
        (("exec", "s"), "ARGV"),
        (("exec", "-b", "-t", "s", "ls"), "--tty"),
        (("exec", "--timeout", "0", "s", "ls"), "--timeout"),
        (("shell", "s"), "terminal"),
    ],
)
def test_bad_usage_is_one_line(cli: Cli, server: WireServer, argv: tuple[str, ...], says: str) -> None:
    done = cli(*argv)
    assert done.code == 2
    assert says in done.error
    assert done.err.count(b"\n") == 1
    assert server.seen == []


def test_what_cannot_be_known_of_a_process_is_said(cli: Cli, server: WireServer, session: str) -> None:
    scripted(server, process(exit_code=137, signal="SIGKILL", error="its guard was lost"))
    done = cli("exec", "--no-stdin", session, "ls")
    assert done.code == 137
    assert "its guard was lost" in done.error


def test_output_that_was_overwritten_is_said_to_be(cli: Cli, server: WireServer, session: str) -> None:
    info = {"id": "p-1", "pid": 3, "state": "running", "background": True}
    server.script(
        "GET",
        ".*/processes/p-1",
        Answer(200, json.dumps(info).encode()),
        Answer(200, json.dumps(info).encode()),
    )
    server.script(
        "GET",
        ".*/processes/p-1/output",
        events(
            {"event": "start", "id": "p-1", "pid": 3},
            {"event": "gap", "stream": "stdout", "from": 0, "to": 7},
            {"event": "stdout", "offset": 7, "data_base64": base64.b64encode(b"rest").decode()},
            {"event": "exit", "exit_code": 0, "stdout": 11, "stderr": 0},
        ),
    )
    done = cli("attach", session, "p-1")
    assert (done.code, done.out) == (0, b"rest")
    assert "7 bytes of stdout" in done.error


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("{s}:a", "{s}:b", "local"),
        ("./a:b", "c", "SESSION:PATH"),
        ("none", "{s}:", "none"),
        ("-", "{s}:dir/", "name"),
        ("-", "{s}:", "name"),
    ],
)
def test_cp_says_what_is_wrong(
    cli: Cli, server: WireServer, session: str, source: str, target: str, says: str
) -> None:
    done = cli("cp", source.format(s=session), target.format(s=session))
    assert done.code == 2
    assert says in done.error
    assert done.err.count(b"\n") == 1
    assert server.seen == []


# --- in a process of its own ------------------------------------------------------------------------------


def test_bytes_and_exit_codes_survive_a_real_process(program: Cli, server: WireServer, session: str) -> None:
    raw = bytes(range(256))
    scripted(server, process(raw, b"\x1b[31mred\n", 42))
    done = program("exec", "--no-stdin", session, "--", "any")
    assert (done.code, done.out, done.err) == (42, raw, b"\x1b[31mred\n")


def test_a_terminal_is_not_read_without_one_inside(server: WireServer, session: str) -> None:
    scripted(server, process(b"out"))
    outer, inner = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "agentcube.cli.main", "exec", session, "any"],
            stdin=inner,
            capture_output=True,
            env={**os.environ, "AGENTCUBE_URL": server.url},
            timeout=60,
        )
    finally:
        os.close(outer)
        os.close(inner)
    assert (done.returncode, done.stdout) == (0, b"out")
    assert "stdin" not in server.requests("POST", ".*/processes")[0].json


def test_a_reader_that_goes_away_is_no_traceback(server: WireServer, session: str) -> None:
    scripted(server, process(b"x" * 8_000_000))
    client = subprocess.Popen(
        [sys.executable, "-m", "agentcube.cli.main", "exec", "--no-stdin", session, "yes"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "AGENTCUBE_URL": server.url},
    )
    assert client.stdout is not None
    assert client.stderr is not None
    client.stdout.read(1)
    client.stdout.close()
    assert client.wait(60) == 1
    assert client.stderr.read() == b""
    client.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_before_it_began_deletes_its_session(
    server: WireServer, number: signal.Signals, tmp_path: Path
) -> None:
    scripted(server, HANG, process())
    client = subprocess.Popen(
        [sys.executable, "-m", "agentcube.cli.main", "run", "--no-stdin", "while True: pass"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "AGENTCUBE_URL": server.url},
    )
    assert client.stderr is not None
    while not server.requests("POST", ".*/processes"):
        assert client.poll() is None
    client.send_signal(number)
    assert client.wait(60) == 128 + number
    assert client.stderr.read() == b""
    client.stderr.close()
    assert server.sessions == {}
