"""The CLI against a real server: output, input and exit codes pass through unchanged."""

from __future__ import annotations

import json
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


def test_the_page_about_the_api_is_there_for_a_browser(server: harness.Server) -> None:
    for path in ("/docs", "/openapi.json"):
        with urllib.request.urlopen(f"{server.url}{path}", timeout=30) as answer:
            assert b"/v1/sessions" in answer.read()
