"""Idle connections to one endpoint, newest first, and never older than their server keeps them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakValueDictionary

from agentcube.model.sandbox import Endpoint
from agentcube.router.dial import dial
from agentcube.router.settings import RouterSettings

if TYPE_CHECKING:
    from agentcube.router.upstream import Upstream


Connect: TypeAlias = "Callable[[Pool, socket.socket | None], Upstream]"


class Pools:
    """All pools of a Router, and how many connections idle in them together."""

    __slots__ = ("_pools", "connect", "idle", "in_use", "settings")

    def __init__(self, settings: RouterSettings, connect: Connect) -> None:
        self.settings = settings
        self.connect = connect
        self.idle = 0
        self.in_use: set[Pool] = set()  # those in which a connection idles
        self._pools: WeakValueDictionary[Endpoint, Pool] = WeakValueDictionary()

    def of(self, endpoint: Endpoint) -> Pool:
        """The pool of `endpoint`."""
        pool = self._pools.get(endpoint)
        if pool is None:
            pool = self._pools[endpoint] = Pool(endpoint, self)
        return pool

    def sweep(self, now: float) -> None:
        """Close what idled too long."""
        self._evict(now - self.settings.upstream_idle_ttl_s)

    def close(self) -> None:
        """Close every idle connection."""
        self._evict(float("inf"))

    def _evict(self, before: float) -> None:
        for pool in list(self.in_use):
            pool.evict(before)


class Pool:
    """Connections to one endpoint."""

    __slots__ = ("__weakref__", "_idle", "_pools", "endpoint")

    def __init__(self, endpoint: Endpoint, pools: Pools) -> None:
        self.endpoint = endpoint
        self._pools = pools
        self._idle: list[Upstream] = []

    def take(self, now: float) -> Upstream | None:
        """The connection that was used last, or None. The caller owns it then."""
        idle = self._idle
        while idle:
            upstream = idle.pop()
            self._pools.idle -= 1
            if now - upstream.idle_since < self._pools.settings.upstream_idle_ttl_s and not upstream.closing:
                return upstream
            upstream.close()
        return None

    def give(self, upstream: Upstream, now: float) -> None:
        """Take a connection back that is between two requests."""
        pools = self._pools
        full = (
            len(self._idle) >= pools.settings.idle_per_endpoint_max or pools.idle >= pools.settings.idle_max
        )
        if full or upstream.behind:
            upstream.close()
            return
        upstream.idle_since = now
        upstream.fresh = False
        self._idle.append(upstream)
        pools.idle += 1
        pools.in_use.add(self)

    def drop(self, upstream: Upstream) -> None:
        """Forget a connection that ended while it idled; one that did not idle here is no error."""
        try:
            self._idle.remove(upstream)
        except ValueError:
            return
        self._pools.idle -= 1

    def evict(self, before: float) -> None:
        """Close those that idle since earlier than `before`."""
        stale = [upstream for upstream in self._idle if upstream.idle_since < before]
        for upstream in stale:
            self.drop(upstream)
            upstream.close()
        if not self._idle:
            self._pools.in_use.discard(self)

    async def dial(self) -> Upstream:
        """A new connection. Raises Unreachable or ConnectTimedOut."""
        return await dial(
            self.endpoint,
            lambda sock: self._pools.connect(self, sock),
            timeout_s=self._pools.settings.connect_timeout_s,
        )
