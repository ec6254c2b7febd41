"""Which servers tests run against, and one per process of each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentcube.stores.redis.settings import RedisSettings
from agentcube.testing.redis_server import RedisServer, find_server, running
from tests.e2e.harness import eventually

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
"""With `everysec`, a write waits for an fsync under way: a server that is killed then loses what it acknowledged."""

_numbers = itertools.count()


def program(kind: str) -> Path:
    """The server program; where there is none, the test is skipped, but in CI it fails."""
    found = find_server(kind)
    if found is None:
        text = f"there is no {kind}-server: run `make install` on Linux x86-64, or apt install {kind}-server"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return found


def fresh_settings(**fields: object) -> RedisSettings:
    """Settings under which nobody else's keys are seen."""
    return RedisSettings(prefix=f"t{os.getpid()}-{next(_numbers)}", **fields)  # type: ignore[arg-type]


def make_cluster(server: RedisServer) -> None:
    """Have one node hold every slot."""
    server.command("CLUSTER", "ADDSLOTS", *range(16384))
    eventually(lambda: b"cluster_state:ok" in server.command("CLUSTER", "INFO"), within=30)


@pytest.fixture(scope="session", params=["redis", "valkey"])
def redis_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisServer]:
    """One server of each kind for all tests of a process; Valkey as a Cluster of one node.

    As a Cluster it refuses whatever touches more than one slot.
    """
    options = ("--cluster-enabled", "yes") if request.param == "valkey" else ()
    with running(program(request.param), tmp_path_factory.mktemp(request.param), *options) as server:
        if options:
            make_cluster(server)
        yield server
