"""Who is the master now: asked of the address itself, of Sentinels, or of a Cluster's nodes.

All keys of a store are in one slot, so that in a Cluster, too, one server is all it needs.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from agentcube.errors import StoreFailed
from agentcube.stores.redis.address import Address, Kind, Place
from agentcube.stores.redis.link import Link, LinkLost, in_words, said

_ASK_S = 1.0
"""For one Sentinel or node; a dead one must leave time to ask the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """Who we are at a server; without a password nobody asks."""

    user: str = ""
    password: str = ""

    def words(self) -> tuple[str, ...]:
        """As AUTH takes them; empty when there are none."""
        return (self.user or "default", self.password) if self.password else ()


class Finder:
    """Finds the server that holds `key` and takes writes. One object per store; keeps what it learnt."""

    def __init__(
        self,
        address: Address,
        *,
        key: str,
        credentials: Credentials,
        sentinel_credentials: Credentials,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._address = address
        self._key = key
        self._auth = sentinel_credentials if address.kind is Kind.SENTINEL else credentials
        self._tls = tls
        self._places = list(address.places)

    @property
    def may_move(self) -> bool:
        """Whether the master can become another one while the old one still answers."""
        return self._address.kind is Kind.SENTINEL

    async def find(self) -> Place:
        """The master's place. Raises StoreFailed saying what each of those asked said."""
        match self._address.kind:
            case Kind.SERVER:
                return self._address.places[0]
            case Kind.SENTINEL:
                return await self._first(self._from_sentinel)
            case Kind.CLUSTER:
                return await self._first(self._from_node)

    async def _first(self, ask: Callable[[Link, Place], Awaitable[Place]]) -> Place:
        """The first answer there is; who gave it is asked first the next time."""
        failures = []
        for place in list(self._places):
            try:
                async with asyncio.timeout(_ASK_S):
                    link = await Link.open(place, tls=self._tls)
                    try:
                        if words := self._auth.words():
                            await said(link, "AUTH", *words)
                        found = await ask(link, place)
                    finally:
                        link.close()
            except (OSError, LinkLost, StoreFailed) as exc:  # a time-out is an OSError
                failures.append(f"{place}: {in_words(exc)}")
                continue
            self._places.remove(place)
            self._places.insert(0, place)
            return found
        raise StoreFailed(f"nobody knows the master ({'; '.join(failures)})")

    async def _from_sentinel(self, link: Link, place: Place) -> Place:
        name = self._address.service
        reply = await said(link, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
        if reply is None:
            raise StoreFailed(f"it knows no master {name!r}")
        host, port = reply
        return Place(host.decode(), int(port))

    async def _from_node(self, link: Link, place: Place) -> Place:
        slot = await said(link, "CLUSTER", "KEYSLOT", self._key)
        for first, last, master, *_ in await said(link, "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                host = (master[0] or b"").decode()
                found = Place(host or place.host, int(master[1]))
                if found not in self._places:  # it may be the only one left of those we were told
                    self._places = [*self._address.places, found]
                return found
        raise StoreFailed(f"no node has slot {slot}")
