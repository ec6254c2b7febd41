"""Callers of a store that is being hurt, a proxy that hurts, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from agentcube.errors import AlreadyExists, StoreFailed
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.session import Session
from agentcube.ports.store import SessionQuery, Store
from agentcube.stores.redis.address import parse_address
from agentcube.stores.redis.settings import RedisSettings
from agentcube.stores.redis.store import RedisStore
from agentcube.testing.eventually import eventually
from agentcube.testing.samples import sample_session, sample_warm
from tests.redis_servers import fresh_settings


def hasty(**fields: object) -> RedisSettings:
    """Settings that find out soon, so that tests are quick; but a slow machine is no dead server."""
    quick = {"heartbeat_s": 0.1, "answer_timeout_s": 30, "connect_timeout_s": 30, "outage_wait_s": 0.3}
    return fresh_settings(**(quick | fields))


@asynccontextmanager
async def opened(url: str, settings: RedisSettings) -> AsyncIterator[RedisStore]:
    async with RedisStore.open(parse_address(url), settings) as store:
        yield store


async def refused(url: str, settings: RedisSettings, reason: str) -> None:
    """The store cannot be opened, and says why."""
    with pytest.raises(StoreFailed, match=re.escape(reason)):
        async with RedisStore.open(parse_address(url), settings):
            pass


async def works(store: Store) -> bool:
    try:
        await store.check()
    except StoreFailed:
        return False
    return True


@dataclass
class Callers:
    """Create sessions from a pool until each has its own, whatever the store does meanwhile."""

    store: Store
    sandboxes: set[SandboxId] = field(default_factory=set)
    acknowledged: dict[SessionId, Session] = field(default_factory=dict)
    failures: Counter[str] = field(default_factory=Counter)

    async def fill(self, count: int) -> None:
        entries = [sample_warm() for _ in range(count)]
        await asyncio.gather(*(self.store.put_warm(entry) for entry in entries))
        self.sandboxes |= {entry.id for entry in entries}

    async def create(self, count: int) -> None:
        """One caller after the other takes what it needs; a call that failed is made again."""
        for _ in range(count):
            wanted = sample_session()
            while wanted.id not in self.acknowledged:
                try:
                    claimed = await self.store.claim_warm(wanted)
                    assert claimed is not None, "the pool has one for everybody"
                    self.acknowledged[wanted.id] = claimed
                except AlreadyExists:  # an earlier call that was not answered made it after all
                    with contextlib.suppress(StoreFailed):
                        self.acknowledged[wanted.id] = await self.store.get(wanted.id)
                except StoreFailed as exc:
                    self.failures[exc.detail] += 1
                    await asyncio.sleep(0.01)

    async def made(self, count: int) -> None:
        """Return once that many were acknowledged."""
        while len(self.acknowledged) < count:
            await asyncio.sleep(0.001)

    async def check(self, *, lost_max: int = 0, besides: Set[SessionId] = frozenset()) -> None:
        """Nothing doubled; of what was acknowledged at most `lost_max` lost. `besides`: sessions of others."""
        await eventually(lambda: works(self.store), within=30)
        page = await self.store.list(SessionQuery(limit=1000))
        listed = [session for session in page.sessions if session.id not in besides]
        bound = [s.sandbox.id for s in listed if s.sandbox is not None]
        warm = {entry.id for entry in await self.store.list_warm()}
        assert len(bound) == len(listed) == len(set(bound)), "a sandbox in two sessions"
        assert not warm & set(bound), "a sandbox in the pool and in a session"
        assert warm | set(bound) <= self.sandboxes
        lost = self.acknowledged.keys() - {s.id for s in listed}
        assert len(lost) <= lost_max, lost
        if not lost_max:
            assert warm | set(bound) == self.sandboxes, "a sandbox that nobody has"


class Proxy:
    """Between a store and its server; `cut`, `freeze` and `delay_s` are what a network can do."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._to = port
        self._tls = tls
        self._streams: set[asyncio.StreamWriter] = set()
        self._asks = asyncio.Event()
        self._answers = asyncio.Event()
        self.thaw()
        self.delay_s = 0.0
        self.port = 0

    @property
    def url(self) -> str:
        return f"{'rediss' if self._tls else 'redis'}://localhost:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.thaw()
            self.cut()

    def cut(self) -> None:
        """Reset every connection."""
        for stream in self._streams:
            stream.transport.abort()

    def freeze(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self._asks.clear()
        self._answers.clear()

    def freeze_answers(self) -> None:
        """What the server says does not get through any more."""
        self._answers.clear()

    def thaw(self) -> None:
        self._asks.set()
        self._answers.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:  # there is no server now
            writer.transport.abort()
            return
        both = {writer, to_writer}
        self._streams |= both
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, to_writer, self._asks))
                group.create_task(self._pump(to_reader, writer, self._answers))
        except* OSError:
            pass
        finally:
            self._streams -= both
            for stream in both:
                stream.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flows: asyncio.Event
    ) -> None:
        while data := await reader.read(65536):
            if not flows.is_set():
                await flows.wait()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.01):
                        data += await reader.read(65536)  # what came meanwhile arrives as one
            await asyncio.sleep(self.delay_s)
            writer.write(data)
            await writer.drain()
        raise ConnectionError("one side is done, and so is the other")
