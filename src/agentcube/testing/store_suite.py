"""What the store contracts share: fixtures, and a few ways of asking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import datetime, timedelta

import pytest

from agentcube.model.ids import SessionId
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.store import Reservation, Store
from agentcube.testing.samples import NOW

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]

OTHER = TemplateKey(Kind.AGENT_RUNTIME, "team-a", "agent")
SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=30)


class StoreSuite:
    """The fixtures of every store contract."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Opens an empty store; a durable one opens the same store again at each call within a test."""
        raise NotImplementedError

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> AsyncIterator[Store]:
        async with open_store() as store:
            yield store


async def lease_ids(store: Store, now: datetime, *, owner: str = "me", limit: int = 100) -> list[SessionId]:
    """Ids of the sessions that were due by `now`, leased for `LEASE`."""
    return [s.id for s in await store.lease_due(now=now, owner=owner, lease=LEASE, limit=limit)]


async def next_change(changes: AsyncIterator[SessionId | None]) -> SessionId | None:
    """The next change, which must come soon."""
    async with asyncio.timeout(10):
        return await anext(changes)


def sample_reservation(session: str, *, key: str = "k-1", expires_at: datetime | None = None) -> Reservation:
    """A reservation of a day, made at `NOW`."""
    return Reservation(
        key=key,
        fingerprint="sha256:abc",
        session_id=SessionId(session),
        expires_at=expires_at or NOW + timedelta(hours=24),
    )
