"""One server for the tests that do not need one of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import harness
from tests.e2e.here import cli


@pytest.fixture(scope="session")
def agents_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory from which this server's templates may take files."""
    folder = tmp_path_factory.mktemp("agents")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, agents_dir: Path) -> Iterator[harness.Server]:
    with harness.serving(
        tmp_path_factory.mktemp("up") / "data", "--allow-host-path", str(agents_dir)
    ) as running:
        yield running


@pytest.fixture(scope="module")
def session(server: harness.Server) -> Iterator[str]:
    """A session for a module's tests: its id."""
    made = cli(server, "session", "create", "my-interpreter")
    assert made.returncode == 0, made.stderr
    id = made.stdout.decode().strip()
    yield id
    assert cli(server, "session", "delete", id).returncode == 0
