"""The Go system's Python client, unchanged from PyPI, in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.agents import write_parrot

CLIENT = "agentcube-sdk==0.1.0"


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = tmp_path_factory.mktemp("go-client") / "venv"
    subprocess.run(
        [sys.executable, "-m", "uv", "venv", "-q", "--python", sys.executable, str(venv)], check=True
    )
    python = venv / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "uv", "pip", "install", "-q", "--python", str(python), CLIENT], check=True
    )
    return python


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, agents_dir: Path) -> Iterator[harness.Server]:
    folder = tmp_path_factory.mktemp("open") / "data"
    with harness.serving(folder, "--auth", "none", "--allow-host-path", str(agents_dir)) as running:
        yield running


def _run(python: Path, server: harness.Server, code: str, cwd: Path) -> str:
    env = {"PATH": "/usr/bin:/bin", "WORKLOAD_MANAGER_URL": server.url, "ROUTER_URL": server.url}
    done = subprocess.run(
        [python, "-I", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=env,
        cwd=cwd,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_code_interpreter_runs_code_and_moves_files(
    go_client: Path, open_server: harness.Server, tmp_path: Path
) -> None:
    out = _run(
        go_client,
        open_server,
        """
        import os
        from agentcube import CodeInterpreterClient
        from agentcube.exceptions import CommandExecutionError
        with CodeInterpreterClient() as client:
            print(client.run_code("python", "print(6 * 7)").strip())
            print(client.run_code("bash", "echo from bash; pwd").split())
            client.write_file("written", "notes/a.txt")
            open("local.bin", "wb").write(bytes(range(256)) * 100)
            client.upload_file("local.bin", "remote.bin")
            client.download_file("remote.bin", "back/again.bin")
            print(open("back/again.bin", "rb").read() == bytes(range(256)) * 100)
            print(sorted(f["name"] for f in client.list_files("notes")))
            print(client.execute_command("cat notes/a.txt"))
            client.run_code("python", "x = 1")
            try:
                client.run_code("python", "print(x)")
            except CommandExecutionError as exc:
                print(exc.exit_code, "NameError" in exc.stderr)
            other = CodeInterpreterClient(session_id=client.session_id)
            print(other.execute_command(["cat", "notes/a.txt"]))
        """,
        tmp_path,
    )
    assert out.splitlines() == [
        "42",
        "['from', 'bash', '/workspace']",
        "True",
        "['a.txt']",
        "written",
        "1 True",
        "written",
    ]


def test_agent_runtime_bootstraps_and_keeps_its_state(
    go_client: Path, open_server: harness.Server, agents_dir: Path, tmp_path: Path
) -> None:
    manifest = write_parrot(agents_dir)
    applied = open_server.cli("apply", "-f", str(manifest))
    assert applied.returncode == 0, applied.stderr
    out = _run(
        go_client,
        open_server,
        """
        from agentcube import AgentRuntimeClient
        with AgentRuntimeClient("parrot") as agent:
            agent.invoke({"say": "one"})
            print(agent.invoke({"say": "two"})["heard"], bool(agent.session_id))
        """,
        tmp_path,
    )
    assert out.strip() == "['one', 'two'] True"
