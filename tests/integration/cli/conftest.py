"""The command line, in this process and in one of its own, against a server that speaks the wire."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agentcube.cli import main
from tests.integration.sdk.wire_server import WireServer, running

Cli = Callable[..., "Done"]


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def error(self) -> str:
        return self.err.decode()


@pytest.fixture
def server() -> Iterator[WireServer]:
    with running() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "AGENTCUBE_URL",
        "AGENTCUBE_API_KEY",
        "ROUTER_URL",
        "WORKLOAD_MANAGER_URL",
        "AGENTCUBE_DEBUG",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


@pytest.fixture
def cli(
    server: WireServer, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Cli:
    """Run a command line in this process: `cli("get", "pools", stdin=b"…")`."""
    monkeypatch.setenv("AGENTCUBE_URL", server.url)

    def call(*argv: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfdbinary.readouterr()
        code = main.run(list(argv))
        sys.stdout.flush()
        sys.stderr.flush()
        out, err = capfdbinary.readouterr()
        return Done(code, out, err)

    return call


@pytest.fixture
def program(server: WireServer) -> Cli:
    """Run a command line in a process of its own."""

    def call(*argv: str, stdin: bytes | None = None, env: dict[str, str] | None = None) -> Done:
        given = {"AGENTCUBE_URL": server.url, **os.environ, **(env or {})}
        done = subprocess.run(
            [sys.executable, "-m", "agentcube.cli.main", *argv],
            input=stdin or b"",
            capture_output=True,
            env=given,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return call
