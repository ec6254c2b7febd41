"""What this process knows of sessions without asking, kept true by the server's pushes.

Reads fill the table; pushes about changes, ours included, take out of it. While the link is up the
table is as the server is, but for pushes under way. When the link is lost it stands still and is used
for a bounded time; a fresh link begins with an empty one.
"""

from __future__ import annotations

import asyncio
import logging

from agentcube.errors import StoreFailed
from agentcube.model.ids import SessionId
from agentcube.stores.feed import Bell, Feed
from agentcube.stores.redis.client import load_scripts
from agentcube.stores.redis.connection import Owner
from agentcube.stores.redis.facts import EVICTS, find_facts
from agentcube.stores.redis.layout import Keys
from agentcube.stores.redis.link import Link, Reply, said
from agentcube.stores.redis.schema import check_schema
from agentcube.stores.redis.settings import RedisSettings
from agentcube.stores.redis.table import Table

_log = logging.getLogger(__name__)


class Known(Owner):
    """The table and the feed of changes; the owner of the link that keeps them."""

    def __init__(self, keys: Keys, settings: RedisSettings) -> None:
        self.table = Table(settings.table_max)
        self.feed = Feed()
        self.bell = Bell()
        """Rings when pool entries or templates changed."""
        self.store_id = ""
        """Of the store that the link leads to."""
        self._keys = keys
        self._tracked = keys.sessions.encode()
        self._meta = keys.meta.encode()
        self._blind_s = settings.blind_s
        self._patience_s = settings.answer_timeout_s
        self._blindness: asyncio.TimerHandle | None = None
        self._link: Link | None = None

    async def prepare(self, link: Link) -> None:
        """Have changes pushed, before anything is read: a read that came first could miss a change."""
        await load_scripts(link)
        await self._check_eviction(link)
        await check_schema(link, self._keys)  # before we follow: what it changes is no news to us
        self._link = link
        await follow_changes(link, self._keys)
        self.store_id = await check_schema(link, self._keys)  # after: somebody else may have been quick

    async def _check_eviction(self, link: Link) -> None:
        """A start is refused; a server that took over from a good one is better than none."""
        facts = await find_facts(link)
        if facts is None or not facts.evicts_sessions:
            return
        if not self.store_id:
            raise StoreFailed(EVICTS.format(facts.eviction))
        _log.error("redis: %s", EVICTS.format(facts.eviction))

    def hear(self, push: list[Reply]) -> None:
        if push[0] != b"invalidate":
            return
        if push[1] is None:
            self._start_over("the session store was emptied")
            return
        keys: list[bytes] = push[1]
        names = [key[len(self._tracked) :] for key in keys if key.startswith(self._tracked)]
        ids = [SessionId(name.decode("utf-8", "replace")) for name in names]
        for id in ids:
            self.table.drop(id)
        self.feed.publish(ids)
        if len(ids) < len(keys):
            self.bell.ring()
        if self._meta in keys:
            self._start_over("the session store's version was changed")

    def up(self) -> None:
        """What is known from before may be wrong, and nobody was told of changes meanwhile."""
        self.close()
        self.table.clear()
        self.feed.publish((None,))
        self.bell.ring()

    def down(self) -> None:
        """Go on with what is known, but not for long."""
        self.close()
        self._blindness = asyncio.get_running_loop().call_later(self._blind_s, self._forget)

    def _forget(self) -> None:
        """It may be long untrue. Whoever has a table of his own, a Router worker, hears of it too."""
        self.table.clear()
        self.feed.publish((None,))

    def close(self) -> None:
        """Stop the time that blindness may last."""
        if self._blindness is not None:
            self._blindness.cancel()
            self._blindness = None

    def _start_over(self, why: str) -> None:
        if self._link is not None:
            self._link.retire(why, within_s=self._patience_s)


async def follow_changes(link: Link, keys: Keys) -> None:
    """Have the link pushed every change of a session, ours too, of pools, templates and the store's version.

    Raises StoreFailed. (NOLOOP would spare us our own, were they not made by scripts.)
    """
    followed = (keys.sessions, keys.warm, keys.templates, keys.meta)
    prefixes = (word for key in followed for word in ("PREFIX", key))
    await said(link, "CLIENT", "TRACKING", "ON", "BCAST", *prefixes)
