"""`run`, `exec` and `cp`: what a program reads, writes and ends with passes through unchanged."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.cli.conftest import Cli
from tests.integration.sdk.wire_server import HANG, Answer, WireServer, problem

RAW = bytes(range(256))


@pytest.fixture
def session(server: WireServer) -> str:
    return str(
        server._new({"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"})["id"]
    )


def test_run_runs_the_code_in_a_session_of_its_own(cli: Cli, server: WireServer) -> None:
    server.executed |= {"stderr": "warn", "exit_code": 3}
    done = cli("run", "print(1)", "-e", "A=1", "--timeout", "90s")
    assert (done.code, done.out, done.err) == (3, b"print(1)", b"warn")
    (execute,) = server.requests("POST", "/v1/sessions/.*/execute")
    assert execute.json["command"][0] == "python3"
    assert execute.json["timeout"] == "90s"
    assert execute.json["env"] == {"A": "1"}
    made = server.requests("POST", "/v1/sessions")[0].json
    assert (made["ttl"], made["idle_timeout"]) == (390, 60)  # should we be killed, it ends by itself
    assert server.sessions == {}


def test_run_takes_a_file_and_passes_stdin_on(cli: Cli, server: WireServer, tmp_path: Path) -> None:
    code = tmp_path / "code.sh"
    code.write_text("cat")
    assert cli("run", "-f", str(code), "--language", "bash", stdin=RAW).out == b"cat"
    assert server.requests("POST", "/v1/sessions/.*/execute")[-1].json["stdin_base64"]
    assert cli("run", "-f", "-", stdin=b"print(2)").out == b"print(2)"
    assert "stdin_base64" not in server.seen[-2].json


def test_run_in_a_session_leaves_it_and_no_script(cli: Cli, server: WireServer, session: str) -> None:
    assert cli("run", "pass", "--session", session).code == 0
    assert list(server.sessions) == [session]
    assert server.seen[-1].json["command"][:2] == ["rm", "-f"]


def test_run_can_keep_its_session(cli: Cli, server: WireServer) -> None:
    done = cli("run", "pass", "--keep", "-n", "team", "--template", "other")
    (id,) = server.sessions
    assert id in done.error
    assert server.sessions[id]["namespace"] == "team"
    assert server.sessions[id]["name"] == "other"
    assert "ttl" not in server.sessions[id]


def test_the_session_is_deleted_when_the_run_fails(cli: Cli, server: WireServer) -> None:
    server.script("POST", ".*/execute", problem(502, "sandbox_unreachable", "sandbox died"))
    done = cli("run", "pass")
    assert done.code == 1
    assert done.err.count(b"\n") == 1
    assert "sandbox died" in done.error
    assert server.sessions == {}


def test_a_session_that_cannot_be_deleted_is_named_and_the_exit_code_kept(
    cli: Cli, server: WireServer
) -> None:
    server.script("DELETE", ".*", *[problem(500, "internal", "broken")] * 3)
    done = cli("run", "pass")
    assert done.code == 0
    assert next(iter(server.sessions)) in done.error


def test_exec_is_transparent(cli: Cli, server: WireServer, session: str) -> None:
    server.executed |= {"exit_code": 7}
    done = cli("exec", "-w", "sub", session, "--", "echo-stdin", "-o", "--help", stdin=RAW)
    assert (done.code, done.out, done.err) == (7, RAW, b"")
    assert server.seen[-1].json["command"] == ["echo-stdin", "-o", "--help"]
    assert server.seen[-1].json["working_dir"] == "sub"
    assert cli("exec", "--no-stdin", session, "ls", "-la").code == 7
    assert server.seen[-1].json["command"] == ["ls", "-la"]
    assert "stdin_base64" not in server.seen[-1].json


def test_output_that_was_cut_is_said_to_be(cli: Cli, server: WireServer, session: str) -> None:
    server.executed |= {"stdout": "x", "stdout_truncated": True}
    done = cli("exec", session, "yes")
    assert done.out == b"x"
    assert "stdout truncated" in done.error


def test_stdin_has_a_limit(cli: Cli, session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agentcube.cli.inputs.STDIN_BYTES_MAX", 10)
    done = cli("exec", session, "cat", stdin=b"x" * 11)
    assert done.code == 2
    assert "agentcube cp" in done.error


def test_cp_both_ways(cli: Cli, server: WireServer, session: str, tmp_path: Path) -> None:
    local, back = tmp_path / "tool.sh", tmp_path / "back"
    local.write_bytes(RAW)
    local.chmod(0o755)
    back.mkdir()
    assert cli("cp", str(local), f"{session}:in/").code == 0
    assert server.files[session] == {"in/tool.sh": RAW}
    assert server.modes["in/tool.sh"] == "0755"
    assert cli("cp", f"{session}:in/tool.sh", str(back)).code == 0
    assert (back / "tool.sh").read_bytes() == RAW
    assert cli("cp", f"{session}:in/tool.sh", "-").out == RAW
    assert cli("cp", str(local), f"{session}:").code == 0
    assert "tool.sh" in server.files[session]


@pytest.mark.parametrize(
    ("source", "target", "code", "says"),
    [
        ("{s}:a", "{s}:b", 2, "local"),
        ("./a:b", "c", 2, "SESSION:PATH"),
        ("none", "{s}:", 2, "none"),
        (".", "{s}:x", 2, "directory"),
        ("-", "{s}:dir/", 2, "name"),
        ("{s}:dir/", "x", 2, "directory"),
        ("{s}:absent", "x", 1, "absent"),
        ("nosession:x", "x", 1, "nosession"),
        ("{s}:file", "/dev/null/x", 1, "/dev/null"),
    ],
)
def test_cp_says_what_is_wrong(
    cli: Cli, server: WireServer, session: str, source: str, target: str, code: int, says: str
) -> None:
    server.files[session]["file"] = b""
    done = cli("cp", source.format(s=session), target.format(s=session))
    assert done.code == code
    assert says in done.error
    assert done.err.count(b"\n") == 1


def test_a_copy_that_breaks_off_fails(cli: Cli, server: WireServer, session: str, tmp_path: Path) -> None:
    broken = Answer(200, b"half", promise=10)
    server.script("GET", ".*/files/f", broken, broken)
    assert cli("cp", f"{session}:f", "-").code == 1
    done = cli("cp", f"{session}:f", str(tmp_path / "f"))
    assert done.code == 1
    assert "before the end" in done.error
    assert not (tmp_path / "f").exists()


# --- in a process of its own ------------------------------------------------------------------------------


def test_bytes_and_exit_codes_survive_a_real_process(program: Cli, server: WireServer, session: str) -> None:
    server.executed |= {"exit_code": 42, "stderr": "\x1b[31mred\n"}
    done = program("exec", session, "--", "echo-stdin", stdin=RAW)
    assert (done.code, done.out, done.err) == (42, RAW, b"\x1b[31mred\n")
    assert program("cp", "-", f"{session}:piped", stdin=RAW * 1000).code == 0
    assert server.files[session]["piped"] == RAW * 1000


def test_a_terminal_is_not_read(server: WireServer, session: str) -> None:
    outer, inner = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "agentcube.cli.main", "exec", session, "echo-stdin"],
            stdin=inner,
            capture_output=True,
            env={**os.environ, "AGENTCUBE_URL": server.url},
            timeout=30,
        )
    finally:
        os.close(outer)
        os.close(inner)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "stdin_base64" not in server.seen[-1].json


def test_a_reader_that_goes_away_is_no_traceback(server: WireServer, session: str) -> None:
    server.executed["stdout"] = "x" * 8_000_000
    process = subprocess.Popen(
        [sys.executable, "-m", "agentcube.cli.main", "exec", session, "yes"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "AGENTCUBE_URL": server.url},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_deletes_its_session(server: WireServer, number: signal.Signals) -> None:
    server.script("POST", ".*/execute", HANG)
    process = subprocess.Popen(
        [sys.executable, "-m", "agentcube.cli.main", "run", "--no-stdin", "while True: pass"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "AGENTCUBE_URL": server.url},
    )
    assert process.stderr is not None
    while not server.requests("POST", ".*/execute"):
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(30) == 128 + number
    assert process.stderr.read() == b""
    process.stderr.close()
    assert server.sessions == {}
