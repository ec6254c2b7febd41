"""What all connections of one Router share, and the one timer that watches over them."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import structlog

from agentcube.errors import Unavailable
from agentcube.model.sandbox import Endpoint
from agentcube.model.session import Session
from agentcube.ports.clock import Clock
from agentcube.ports.control import ControlPlane
from agentcube.ports.store import SessionTable
from agentcube.ports.tokens import Authenticator, LinkVerifier, Signer
from agentcube.router import edge
from agentcube.router.activity import Activity
from agentcube.router.exposed import Links
from agentcube.router.flights import Flights
from agentcube.router.heads import Reader
from agentcube.router.limits import Limits
from agentcube.router.pool import Pools
from agentcube.router.sessions import Sessions, manager_port
from agentcube.router.settings import RouterSettings
from agentcube.router.targets import Routes
from agentcube.router.tokens import Tokens
from agentcube.router.upstream import Upstream
from agentcube.router.wakes import Wakes

if TYPE_CHECKING:
    from agentcube.router.client import Client

log = structlog.get_logger(__name__)

Check = Callable[[], Awaitable[None]]

_SWEEPS_PER_FORGET = 40  # forgetting entries of sessions that are gone is not urgent


class Engine:
    """Shared state: tables, limits, tokens, tasks. Belongs to one event loop."""

    def __init__(
        self,
        settings: RouterSettings,
        *,
        store: SessionTable,
        control: ControlPlane,
        auth: Authenticator,
        signer: Signer,
        links: LinkVerifier,
        manager: Endpoint,
        clock: Clock,
        checks: tuple[Check, ...],
    ) -> None:
        self.settings = settings
        self.trusted = edge.networks(settings.trusted_proxies)
        self.control = control
        self.auth = auth
        self.signer = signer
        self.checks = checks
        self.reader = Reader()
        self.routes = Routes(settings.ports_domain)
        self.links = Links(links, clock)
        self.pools = Pools(settings, lambda pool, sock: Upstream(pool, self.reader, sock))
        self.sessions = Sessions(store, self.pools)
        self.manager = manager_port(manager, self.pools)
        self.activity = Activity(store, clock)
        self.limits = Limits(settings)
        self.suspicions: Flights[Session] = Flights()
        self.wakes = Wakes(store, control, self.sessions, timeout_s=settings.wake_timeout_s, spawn=self.spawn)
        self.clients: set[Client] = set()
        self.draining = False
        self.changed = asyncio.Event()  # a connection ended, or while draining a request
        self.now = 0.0  # the loop's time as of the last sweep; precise enough for every deadline here
        self.in_flight = 0
        self.waiting = 0
        self.held_bytes = 0
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="router-sign")
        self.tokens = Tokens(self._executor)
        self._tasks: set[asyncio.Task[None]] = set()
        self._id_prefix = secrets.token_hex(6).encode()
        self._ids = itertools.count(1)

    def next_id(self) -> bytes:
        """A fresh request id, unique among all Routers."""
        return b"%b-%x" % (self._id_prefix, next(self._ids))

    def spawn(self, work: Coroutine[None, None, None], name: str) -> None:
        """Run `work` beside the connections. What it does not handle is logged: it is a bug."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("router task failed", task=task.get_name(), exc_info=error)

    def wait_turn(self) -> None:
        """Count a request in that must wait for its session. Raises Unavailable when too many do."""
        if self.waiting >= self.settings.waiting_max:
            raise Unavailable("too many requests wait for their sessions", limit="waiting")
        self.waiting += 1

    async def run(self) -> None:
        """Sweep for ever."""
        loop = asyncio.get_running_loop()
        for turn in itertools.count(1):
            await asyncio.sleep(self.settings.sweep_interval_s)
            self.now = loop.time()
            for client in list(self.clients):
                client.on_sweep(self.now)
            self.pools.sweep(self.now)
            if turn % _SWEEPS_PER_FORGET == 0:
                self.sessions.sweep()
                self.limits.sweep(self.now)

    async def close(self) -> None:
        """Drop every connection and end every task."""
        for client in list(self.clients):
            client.abort()
        self.pools.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.suspicions.cancel()
        await self.wakes.close()
        await self.tokens.close()
        self._executor.shutdown(wait=False, cancel_futures=True)
        await self.activity.flush()
