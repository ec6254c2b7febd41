"""The shared store: every change is one atomic script on a Redis or Valkey server.

A change is acknowledged once the server has made it. What a crash of the server may take back is what
it had neither on disk nor at a replica (docs/how-to/use-redis.md).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Self

from agentcube.stores.redis import scripts
from agentcube.stores.redis.address import Address
from agentcube.stores.redis.client import Client
from agentcube.stores.redis.clock import StoreClock
from agentcube.stores.redis.dialing import Dialer
from agentcube.stores.redis.known import Known
from agentcube.stores.redis.layout import Keys, microseconds
from agentcube.stores.redis.pools import RedisPools
from agentcube.stores.redis.replicated import ReplicatedWrites
from agentcube.stores.redis.sessions import RedisSessions
from agentcube.stores.redis.settings import RedisSettings


class RedisStore(RedisSessions, RedisPools):
    """A `ports.store.Store` on a Redis or Valkey server. Get one from `open`.

    `clock` tells the server's time: whoever gives this store times should take them from there.
    """

    def __init__(self, address: Address, settings: RedisSettings) -> None:
        keys = Keys(settings.prefix)
        dialer = Dialer.of(address, settings, keys)
        known = Known(keys, settings)
        self.clock = StoreClock()
        self._main = dialer.connection(known, self.clock)
        client = Client(self._main, base=keys.base, patience_s=settings.outage_wait_s)
        self._connections = [self._main]
        creations: Client | ReplicatedWrites = client
        if settings.wait_replicas:
            creations = ReplicatedWrites(replicas=settings.wait_replicas, patience_s=settings.wait_s)
            second = dialer.connection(creations, self.clock, patience_s=settings.wait_s)
            creations.use(Client(second, base=keys.base, patience_s=settings.outage_wait_s))
            self._connections.append(second)
        RedisSessions.__init__(self, client, keys, known, creations)
        RedisPools.__init__(self, client, keys, known)

    @classmethod
    @asynccontextmanager
    async def open(cls, address: Address, settings: RedisSettings) -> AsyncIterator[Self]:
        """Connect to the store, made if it is not there yet. Leaving the context hangs up.

        Raises StoreFailed naming the server and the remedy when it cannot be used.
        """
        store = cls(address, settings)
        try:
            for connection in store._connections:
                await connection.start()
            yield store
        finally:
            store._known.feed.close()
            store._known.bell.close()
            for connection in store._connections:
                await connection.close()
            store._known.close()

    @property
    def id(self) -> str:
        """Names the store for ever; another one, or this one emptied, has another."""
        return self._known.store_id

    async def claim_home(self, owner: str) -> str:
        """Whose sandboxes this store holds: `owner`, if it was nobody's before. Raises StoreFailed."""
        await self._client.ask("SET", self._keys.home, owner, "NX")
        return bytes(await self._client.ask("GET", self._keys.home)).decode("utf-8", "replace")

    async def leave_home(self) -> None:
        """It holds nobody's sandboxes any more. Raises StoreFailed."""
        await self._client.ask("DEL", self._keys.home)

    async def lease_role(self, role: str, *, owner: str, now: datetime, lease: timedelta) -> bool:
        span = (microseconds(now), microseconds(now + lease))
        return bool((await self._client.run(scripts.LEASE_ROLE, role, owner, *span))[0] == b"ok")

    async def leave_role(self, role: str, *, owner: str) -> None:
        await self._client.run(scripts.LEAVE_ROLE, role, owner)

    async def check(self) -> None:
        await self._client.ask("SET", self._keys.probe, "1")
