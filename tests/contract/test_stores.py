"""Every store against the one store contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.redis_servers import fresh_settings

from agentcube.ports.store import Store
from agentcube.stores.memory import MemoryStore
from agentcube.stores.redis.address import parse_address
from agentcube.stores.redis.store import RedisStore
from agentcube.stores.sqlite import SqliteStore
from agentcube.testing.redis_server import RedisServer
from agentcube.testing.store_contract import DurableStoreContract, StoreContract
from agentcube.testing.store_suite import OpenStore


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def open_store(self) -> OpenStore:
        @asynccontextmanager
        async def open_memory() -> AsyncIterator[Store]:
            yield MemoryStore()

        return open_memory


class TestSqliteStore(DurableStoreContract):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> OpenStore:
        return lambda: SqliteStore.open(tmp_path / "store.sqlite3")


class TestRedisStore(DurableStoreContract):
    @pytest.fixture
    def open_store(self, redis_server: RedisServer) -> OpenStore:
        settings = fresh_settings()
        return lambda: RedisStore.open(parse_address(redis_server.url), settings)
