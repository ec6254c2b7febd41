"""A look at a server from outside, for `agentcube doctor`: everything a store needs is tried, nothing is kept."""

from __future__ import annotations

import statistics
import time

from agentcube.errors import StoreFailed
from agentcube.stores.redis.address import Address
from agentcube.stores.redis.client import load_scripts
from agentcube.stores.redis.clock import StoreClock
from agentcube.stores.redis.connection import Owner
from agentcube.stores.redis.dialing import Dialer
from agentcube.stores.redis.facts import EVICTS, Facts, find_facts
from agentcube.stores.redis.known import follow_changes
from agentcube.stores.redis.layout import Keys
from agentcube.stores.redis.link import Link
from agentcube.stores.redis.settings import RedisSettings

_ROUND_TRIPS = 50


async def examine(address: Address, settings: RedisSettings) -> str:
    """What the server is and how fast it answers. Raises StoreFailed saying why it will not do."""
    keys = Keys(settings.prefix)
    examiner = _Examiner(keys)
    connection = Dialer.of(address, settings, keys).connection(examiner, StoreClock())
    await connection.start()
    try:
        link = await connection.link()
        times = []
        for _ in range(_ROUND_TRIPS):
            began = time.perf_counter()
            await link.call("TIME")
            times.append(time.perf_counter() - began)
    finally:
        await connection.close()
    return f"{examiner.facts or 'INFO is denied'}; answers in {statistics.median(times) * 1e6:.0f} µs"


class _Examiner(Owner):
    """The owner of the link that is looked at."""

    def __init__(self, keys: Keys) -> None:
        self.facts: Facts | None = None
        self._keys = keys

    async def prepare(self, link: Link) -> None:
        await follow_changes(link, self._keys)
        await load_scripts(link)
        self.facts = await find_facts(link)
        if self.facts is not None and self.facts.evicts_sessions:
            raise StoreFailed(EVICTS.format(self.facts.eviction))
