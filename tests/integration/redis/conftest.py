"""A server per test, that may be hurt, and what its callers do meanwhile. Runs on uvloop, as `up` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentcube.testing.redis_server import RedisServer, running
from tests.redis_servers import DURABLE, program


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis that has on disk what it acknowledged."""
    with running(program("redis"), tmp_path / "redis", *DURABLE) as server:
        yield server
