"""Who wants to hear of changed sessions: bounded subscriptions of one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from weakref import WeakSet

from agentcube.model.ids import SessionId

PENDING_MAX = 4096
"""Distinct ids one subscriber may leave unread (about 0.5 MB) before it gets None instead."""


class Feed:
    """Hands each changed id to every subscriber; forgets subscribers that are dropped."""

    def __init__(self, *, pending_max: int = PENDING_MAX) -> None:
        self._pending_max = pending_max
        self._subscriptions: WeakSet[Subscription] = WeakSet()
        self._closed = False

    def subscribe(self) -> Subscription:
        """A subscription that hears of every change from now on."""
        subscription = Subscription(self._pending_max)
        if self._closed:
            subscription.close()
        self._subscriptions.add(subscription)
        return subscription

    def publish(self, ids: Iterable[SessionId | None]) -> None:
        """Tell everybody that these changed; None: that changes were missed. Never waits."""
        changed = tuple(ids)
        for subscription in self._subscriptions:
            subscription.put(changed)

    def close(self) -> None:
        """End every subscription once its reader has read what is pending."""
        self._closed = True
        for subscription in self._subscriptions:
            subscription.close()


class Subscription(AsyncIterator[SessionId | None]):
    """One reader's changes, each pending id once, in order of first change; None: some were missed."""

    def __init__(self, pending_max: int) -> None:
        self._pending_max = pending_max
        self._pending: dict[SessionId | None, None] = {}
        self._news = asyncio.Event()
        self._closed = False

    def put(self, ids: Iterable[SessionId | None]) -> None:
        """Remember ids for the reader, or that there were too many of them."""
        self._pending.update(dict.fromkeys(ids))
        if len(self._pending) > self._pending_max:
            self._pending = {None: None}
        self._news.set()

    def close(self) -> None:
        """Let the reader end after what is pending."""
        self._closed = True
        self._news.set()

    async def __anext__(self) -> SessionId | None:
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        id = next(iter(self._pending))
        del self._pending[id]
        return id


class Bell:
    """Tells every listener that something changed, and not what; forgets listeners that are dropped."""

    def __init__(self) -> None:
        self._listeners: WeakSet[Listener] = WeakSet()
        self._closed = False

    def listen(self) -> Listener:
        """Hears of every change from now on; several may be one."""
        listener = Listener()
        if self._closed:
            listener.close()
        self._listeners.add(listener)
        return listener

    def ring(self) -> None:
        """Tell everybody. Never waits."""
        for listener in self._listeners:
            listener.rung.set()

    def close(self) -> None:
        """End every listener."""
        self._closed = True
        for listener in self._listeners:
            listener.close()


class Listener(AsyncIterator[None]):
    """One that hears a bell."""

    def __init__(self) -> None:
        self.rung = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Let the reader end."""
        self._closed = True
        self.rung.set()

    async def __anext__(self) -> None:
        await self.rung.wait()
        if self._closed:
            raise StopAsyncIteration
        self.rung.clear()
