"""`up`, `down`, `demo`, `doctor`, `env`: what they hand over, and what they say where there is no server."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from agentcube.cli import main


@dataclass
class Up:
    """Stands in for the modules of agentcube.up: remembers calls, answers 7."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def module(self, name: str) -> Any:
        assert name.startswith("agentcube.up.")
        record = {
            "up.main": {"UpOptions": lambda **options: options, "up": self._call("up")},
            "up.stop": {"down": self._call("down")},
            "up.demo": {"demo": self._call("demo")},
            "up.doctor": {"doctor": self._call("doctor")},
            "up.envs": {"env_list": self._call("env_list"), "env_create": self._call("env_create")},
        }
        return SimpleNamespace(**record[name.removeprefix("agentcube.")])

    def _call(self, name: str) -> Any:
        def called(*arguments: Any) -> int:
            self.calls.append((name, *arguments))
            return 7

        return called


def _replace_server(monkeypatch: pytest.MonkeyPatch, ours: Callable[[str], Any]) -> None:
    """Modules of the server come from `ours`; typer imports some of its own in the same way, when first used."""
    real = importlib.import_module

    def module(name: str, package: str | None = None) -> Any:
        return ours(name) if name.startswith("agentcube.up.") else real(name, package)

    monkeypatch.setattr(importlib, "import_module", module)


def _lacking(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    _replace_server(monkeypatch, absent)


@pytest.fixture
def up(monkeypatch: pytest.MonkeyPatch) -> Up:
    up = Up()
    _replace_server(monkeypatch, up.module)
    return up


DEFAULTS = {
    "host": "127.0.0.1",
    "port": 8080,
    "data_dir": None,
    "auth": "key",
    "pool": 2,
    "allow_host_path": (),
    "store": "sqlite",
    "keep": False,
    "tls_cert": None,
    "tls_key": None,
    "trust_proxy": (),
    "proxy_protocol": False,
    "router_workers": 0,
    "ports_domain": "localhost",
    "log_level": "info",
}


def test_up_hands_its_options_over(up: Up) -> None:
    assert main.run(["up"]) == 7
    words = "up --host :: --port 0 --data-dir /d --auth none --pool 0 --allow-host-path /a --allow-host-path /b --keep"
    words += " --store redis://h"
    edge = "--tls-cert /c --tls-key /k --trust-proxy ::1 --trust-proxy 10.0.0.0/8 --proxy-protocol --router-workers 3"
    edge += " --ports-domain apps.test"
    assert main.run([*words.split(), *edge.split(), "--log-level", "debug"]) == 7
    given = {
        "host": "::",
        "port": 0,
        "data_dir": Path("/d"),
        "auth": "none",
        "pool": 0,
        "allow_host_path": (Path("/a"), Path("/b")),
        "store": "redis://h",
        "keep": True,
        "tls_cert": Path("/c"),
        "tls_key": Path("/k"),
        "trust_proxy": ("::1", "10.0.0.0/8"),
        "proxy_protocol": True,
        "router_workers": 3,
        "ports_domain": "apps.test",
        "log_level": "debug",
    }
    assert up.calls == [("up", DEFAULTS), ("up", given)]


def test_the_options_are_those_of_the_server() -> None:
    from agentcube.up.main import UpOptions

    assert UpOptions() == UpOptions(**DEFAULTS)  # type: ignore[arg-type]


def test_the_others_hand_over_too(up: Up) -> None:
    for line in (
        "down --data-dir /d",
        "demo",
        "doctor -o json",
        "env list",
        "env create big -r r.txt",
        "env create big",
        "env create big -r r.txt --preload a --preload b.c",
    ):
        assert main.run(line.split()) == 7
    assert up.calls == [
        ("down", Path("/d")),
        ("demo",),
        ("doctor", "json", "sqlite"),
        ("env_list", "table"),
        ("env_create", "big", Path("r.txt"), None),
        ("env_create", "big", None, None),
        ("env_create", "big", Path("r.txt"), ["a", "b.c"]),
    ]


@pytest.mark.parametrize("command", ["up", "down", "demo", "doctor", "env list"])
def test_a_client_installation_says_what_to_install(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _lacking(monkeypatch, "uvicorn")
    assert main.run(command.split()) == 2
    assert "pip install 'agentcube[server]'" in capsys.readouterr().err


def test_a_module_of_ours_that_is_absent_is_not_a_missing_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _lacking(monkeypatch, "agentcube.up.demo")
    assert main.run(["demo"]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("platform", ["darwin", "win32"])
def test_other_systems_are_told_what_to_do_instead(
    platform: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert main.run(["up"]) == 2
    said = capsys.readouterr().err
    assert "Linux" in said
    assert "AGENTCUBE_URL" in said


def test_the_demo_is_not_begun_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def only_the_demo(name: str) -> Any:
        if name == "agentcube.up.demo":
            raise AssertionError("begun")
        raise ModuleNotFoundError("No module named 'structlog'", name="structlog")

    _replace_server(monkeypatch, only_the_demo)
    assert main.run(["demo"]) == 2
    assert "pip install" in capsys.readouterr().err


def test_version_and_completion() -> None:
    runner = CliRunner()
    assert runner.invoke(main.app, ["--version"]).stdout.startswith("agentcube ")
    assert runner.invoke(main.app, ["version"]).stdout.startswith("agentcube ")
    assert '"version"' in runner.invoke(main.app, ["version", "-o", "json"]).stdout
    listed = runner.invoke(
        main.app,
        [],
        prog_name="agentcube",
        env={"_AGENTCUBE_COMPLETE": "complete_bash", "COMP_WORDS": "agentcube get ", "COMP_CWORD": "2"},
    )
    assert {"agent-runtimes", "code-interpreters", "pools", "sessions"} <= set(listed.stdout.split())
