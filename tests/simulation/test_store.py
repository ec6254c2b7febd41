"""The simulated store is a store: it passes the suite that every store passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest

from agentcube.errors import StoreFailed
from agentcube.ports.store import Store
from agentcube.testing.samples import sample_session
from agentcube.testing.store_contract import StoreContract
from agentcube.testing.store_suite import OpenStore
from tests.simulation.loop import SimLoop
from tests.simulation.store import StoreServer


class TestSimulatedStore(StoreContract):
    @pytest.fixture
    def anyio_backend(self) -> Any:
        return "asyncio", {"loop_factory": SimLoop}

    @pytest.fixture
    def open_store(self) -> OpenStore:
        @asynccontextmanager
        async def open_simulated() -> AsyncIterator[Store]:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, SimLoop)
            yield StoreServer(loop, Random(1)).client(loop.world)

        return open_simulated


def test_a_write_whose_link_is_lost_may_have_been_made() -> None:
    loop = SimLoop()
    server = StoreServer(loop, Random(1))
    store = server.client(loop.world)

    async def run() -> None:
        session = sample_session()
        loop.call_later(0.0006, store.cut)  # the request has arrived, its answer has not
        server.delay_s = 0.0005
        with pytest.raises(StoreFailed, match="not known"):
            await store.insert(session)
        assert await store.get(session.id) == session

    loop.run_until_complete(run())
    loop.close()


def test_a_store_that_is_down_is_out_of_reach_and_known_sessions_are_peeked_at_for_a_while() -> None:
    loop = SimLoop()
    server = StoreServer(loop, Random(1))
    store = server.client(loop.world)

    async def run() -> None:
        session = await store.insert(sample_session())
        await asyncio.sleep(1)
        await store.get(session.id)
        server.go_down()
        with pytest.raises(StoreFailed, match="out of reach"):
            await store.get(session.id)
        assert store.peek(session.id) == session
        await asyncio.sleep(30)
        assert store.peek(session.id) is None
        server.come_up()
        assert await store.get(session.id) == session

    loop.run_until_complete(run())
    loop.close()
