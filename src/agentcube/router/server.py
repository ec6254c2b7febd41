"""The Router as one object: given its collaborators, it serves listening sockets until drained."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from agentcube.model.sandbox import Endpoint
from agentcube.ports.clock import Clock, SystemClock
from agentcube.ports.control import ControlPlane
from agentcube.ports.store import SessionStore
from agentcube.ports.tokens import Authenticator, Signer
from agentcube.router.client import Client
from agentcube.router.engine import Check, Engine
from agentcube.router.settings import RouterSettings


class Router:
    """Serves the data plane, and passes the management API on to `manager`.

    `checks` are awaited by `/health` and `/health/ready` and raise an AgentCubeError when a
    dependency is down. One Router serves once.
    """

    def __init__(
        self,
        settings: RouterSettings,
        *,
        store: SessionStore,
        control: ControlPlane,
        auth: Authenticator,
        signer: Signer,
        manager: Endpoint,
        clock: Clock | None = None,
        checks: Sequence[Check] = (),
    ) -> None:
        self._settings = settings
        self._engine = Engine(
            settings,
            store=store,
            control=control,
            auth=auth,
            signer=signer,
            manager=manager,
            clock=clock or SystemClock(),
            checks=tuple(checks),
        )
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()

    @property
    def in_flight(self) -> int:
        """Requests that are not answered yet, tunnels included."""
        return self._engine.in_flight

    @property
    def connections(self) -> int:
        """Client connections."""
        return len(self._engine.clients)

    async def serve(self, *listeners: socket.socket) -> None:
        """Accept on the bound, listening sockets until `drain` or cancellation; closes them.

        An exception from here means that the Router does not serve any more.
        """
        loop = asyncio.get_running_loop()
        engine = self._engine
        engine.now = loop.time()
        servers: list[asyncio.AbstractServer] = []
        try:
            for sock in listeners:
                accepting = await loop.create_server(lambda: Client(engine), sock=sock)
                servers.append(accepting)
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(engine.run(), name="router sweep"),
                    group.create_task(engine.activity.run(self._settings.flush_interval_s), name="activity"),
                ]
                await self._draining.wait()
                for server in servers:
                    server.close()
                await self._wait_for_clients()
                for task in loops:
                    task.cancel()
        finally:
            for server in servers:
                server.close()
            await asyncio.shield(engine.close())
            self._drained.set()

    async def drain(self) -> None:
        """Accept nothing more, let what is under way end (bounded), and return when `serve` is through."""
        self._engine.draining = True
        self._draining.set()
        await self._drained.wait()

    async def _wait_for_clients(self) -> None:
        """Let requests under way end, then connections; each has its deadline."""
        engine = self._engine
        for client in list(engine.clients):
            client.retire()
        await self._wait_while(lambda: bool(engine.in_flight), self._settings.drain_timeout_s)
        await self._wait_while(lambda: bool(engine.clients), self._settings.linger_timeout_s)

    async def _wait_while(self, busy: Callable[[], bool], timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while busy():
                    self._engine.changed.clear()
                    await self._engine.changed.wait()
