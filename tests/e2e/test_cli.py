"""The CLI against a real server: output, input and exit codes pass through unchanged."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.agents import write, write_parrot


@pytest.fixture
def session(server: harness.Server) -> Iterator[str]:
    made = server.cli("session", "create", "my-interpreter", "-o", "json")
    assert made.returncode == 0, made.stderr
    id = json.loads(made.stdout)["id"]
    yield id
    assert server.cli("session", "delete", id).returncode == 0


def test_run_passes_output_and_exit_code(server: harness.Server) -> None:
    done = server.cli("run", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert (done.stdout, done.returncode) == (b"out\n", 3)
    assert done.stderr == b"err\n"


def test_run_reads_a_file_and_stdin(server: harness.Server, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])")
    done = server.cli("run", "-f", str(script), input=bytes(range(256)))
    assert (done.stdout, done.returncode) == (bytes(range(256))[::-1], 0)


def test_run_leaves_no_session(server: harness.Server) -> None:
    before = server.cli("session", "list", "-o", "json").stdout
    assert server.cli("run", "pass").returncode == 0
    assert server.cli("session", "list", "-o", "json").stdout == before


def test_exec_is_transparent(server: harness.Server, session: str) -> None:
    done = server.cli("exec", session, "--", "sh", "-c", "cat; printf '\\377'; exit 7", input=b"\x00\xfe raw")
    assert (done.stdout, done.returncode) == (b"\x00\xfe raw\xff", 7)
    done = server.cli("exec", session, "--", "no-such-program")
    assert done.returncode == 127
    assert b"no-such-program" in done.stderr


def test_cp_both_ways(server: harness.Server, session: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096
    there, back = tmp_path / "there.bin", tmp_path / "back.bin"
    there.write_bytes(data)
    assert server.cli("cp", str(there), f"{session}:in/data.bin").returncode == 0
    assert server.cli("cp", f"{session}:in/data.bin", str(back)).returncode == 0
    assert back.read_bytes() == data
    assert server.cli("cp", "-", f"{session}:piped", input=b"piped in").returncode == 0
    assert server.cli("cp", f"{session}:piped", "-").stdout == b"piped in"
    missing = server.cli("cp", f"{session}:nothing", str(tmp_path / "x"))
    assert missing.returncode == 1
    assert b"nothing" in missing.stderr
    assert not (tmp_path / "x").exists()


def test_sessions_are_listed_and_shown(server: harness.Server, session: str) -> None:
    shown = json.loads(server.cli("session", "show", session, "-o", "json").stdout)
    assert shown["phase"] == "Ready"
    assert shown["sandbox"]["isolation"] == "namespace"
    assert session in server.cli("session", "list").stdout.decode()


def test_templates_are_applied_got_and_deleted(server: harness.Server, agents_dir: Path) -> None:
    manifest = write_parrot(agents_dir)
    assert server.cli("apply", "-f", str(manifest)).returncode == 0
    assert b"parrot" in server.cli("get", "agent-runtimes").stdout
    assert b"my-interpreter" in server.cli("get", "code-interpreters").stdout
    assert b"my-interpreter" in server.cli("get", "pools").stdout
    assert server.cli("delete", "agent-runtime", "parrot").returncode == 0
    assert b"parrot" not in server.cli("get", "agent-runtimes").stdout


def test_logs_of_an_agent(server: harness.Server, agents_dir: Path) -> None:
    code = "import sys\nprint('to out', flush=True)\nprint('to err', file=sys.stderr, flush=True)\n"
    code += (
        "from http.server import *\nHTTPServer(('127.0.0.1', 8000), BaseHTTPRequestHandler).serve_forever()\n"
    )
    manifest = write(agents_dir, "talker", code)
    assert server.cli("apply", "-f", str(manifest)).returncode == 0
    made = server.cli("session", "create", "talker", "--kind", "AgentRuntime", "-o", "json")
    id = json.loads(made.stdout)["id"]
    logs = server.cli("logs", id)
    assert logs.returncode == 0
    assert logs.stdout == b"to out\n"
    assert logs.stderr == b"to err\n"
    assert server.cli("session", "delete", id).returncode == 0


def test_an_agent_that_cannot_start_says_why(server: harness.Server, agents_dir: Path) -> None:
    manifest = write(agents_dir, "broken", "raise SystemExit(9)\n")
    assert server.cli("apply", "-f", str(manifest)).returncode == 0
    made = server.cli("session", "create", "broken", "--kind", "AgentRuntime")
    assert made.returncode == 1
    assert b"9" in made.stderr
    assert len(made.stderr.strip().splitlines()) == 1


def test_bad_usage_is_one_line_and_exit_code_2(server: harness.Server, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1, 2")
    for argv in (("apply", "-f", str(bad)), ("apply", "-f", str(tmp_path / "none.yaml"))):
        done = server.cli(*argv)
        assert done.returncode == 2, done
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert server.cli("session", "show", "nobody").returncode == 1


def test_no_server_says_what_to_do(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    done = subprocess.run([*harness.CLI, "session", "list"], capture_output=True, text=True, env=env)
    assert done.returncode == 2
    assert "agentcube up" in done.stderr


def test_clients_find_the_server_by_themselves(tmp_path: Path) -> None:
    with harness.serving(tmp_path / "data", "--pool", "0") as own:
        env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(own.config_home)}
        done = subprocess.run([*harness.CLI, "session", "list", "-o", "json"], capture_output=True, env=env)
        assert done.returncode == 0, done.stderr
        for file in (own.data_dir / "api-key", own.config_home / "agentcube" / "local.json"):
            assert file.stat().st_mode & 0o777 == 0o600
        down = subprocess.run(
            [*harness.CLI, "down", "--data-dir", str(own.data_dir)], capture_output=True, env=env
        )
        assert down.returncode == 0, down.stderr
        assert own.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_program_ends_with_whoever_waits_for_it(
    server: harness.Server, session: str, number: signal.Signals
) -> None:
    program = "echo $$ > pid; exec sleep 600"
    caller = subprocess.Popen(
        [*harness.CLI, "exec", "--no-stdin", session, "--", "sh", "-c", program], env=server.env()
    )
    alive = ["exec", "--no-stdin", session, "--", "sh", "-c", 'kill -0 "$(cat pid)"']
    harness.eventually(lambda: server.cli(*alive).returncode == 0, within=30)
    caller.send_signal(number)
    assert caller.wait(30) == (-number if number is signal.SIGKILL else 128 + number)
    harness.eventually(lambda: server.cli(*alive).returncode == 1, within=8)
    assert server.cli("session", "show", session).returncode == 0, "the session went, too"
    assert server.cli("exec", session, "--", "rm", "pid").returncode == 0


def test_the_page_about_the_api_is_there_for_a_browser(server: harness.Server) -> None:
    for path in ("/docs", "/openapi.json"):
        with urllib.request.urlopen(f"{server.url}{path}", timeout=30) as answer:
            assert b"/v1/sessions" in answer.read()
