"""A wire server per test, and a machine on which no other AgentCube is configured."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.sdk.wire_server import WireServer, running


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AGENTCUBE_URL", "AGENTCUBE_API_KEY", "ROUTER_URL", "WORKLOAD_MANAGER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))


@pytest.fixture
def server() -> Iterator[WireServer]:
    with running() as server:
        yield server
