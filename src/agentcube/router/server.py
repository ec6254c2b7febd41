"""The Router as one object: given its collaborators, it serves listening sockets until drained."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from agentcube.model.sandbox import Endpoint
from agentcube.ports.clock import Clock, SystemClock
from agentcube.ports.control import ControlPlane
from agentcube.ports.store import SessionTable
from agentcube.ports.tokens import Authenticator, LinkVerifier, Signer
from agentcube.router.client import Client
from agentcube.router.engine import Check, Engine
from agentcube.router.settings import RouterSettings
from agentcube.router.tls import LOOK_S, Certificate

_KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 60,  # s of silence before the first probe: below the idle times of NATs
    socket.TCP_KEEPINTVL: 15,
    socket.TCP_KEEPCNT: 4,
}


class Router:
    """Serves the data plane, and passes the management API on to `manager`.

    `checks` are awaited by `/health` and `/health/ready` and raise an AgentCubeError when a
    dependency is down. With a `certificate` it speaks TLS. One Router serves once.
    """

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
        clock: Clock | None = None,
        checks: Sequence[Check] = (),
        certificate: Certificate | None = None,
    ) -> None:
        self._settings = settings
        self._certificate = certificate
        self._engine = Engine(
            settings,
            store=store,
            control=control,
            auth=auth,
            signer=signer,
            links=links,
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
                server = await self._accept(sock)
                servers.append(server)
            async with asyncio.TaskGroup() as group:
                loops = [
                    group.create_task(engine.run(), name="router sweep"),
                    group.create_task(engine.activity.run(self._settings.flush_interval_s), name="activity"),
                    group.create_task(engine.wakes.run(), name="wakes"),
                ]
                if self._certificate is not None:
                    loops.append(group.create_task(_renewals(self._certificate), name="certificate"))
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

    async def _accept(self, sock: socket.socket) -> asyncio.AbstractServer:
        loop, engine = asyncio.get_running_loop(), self._engine
        _keep_alive(sock)
        if self._certificate is None:
            return await loop.create_server(lambda: Client(engine), sock=sock)
        return await loop.create_server(
            lambda: Client(engine),
            sock=sock,
            ssl=self._certificate.context,
            ssl_handshake_timeout=self._settings.head_timeout_s,
            ssl_shutdown_timeout=self._settings.linger_timeout_s,
        )

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
        end = asyncio.get_running_loop().time() + self._settings.drain_timeout_s
        await self._wait_while(lambda: bool(engine.in_flight), self._settings.drain_timeout_s)
        await self._wait_while(lambda: bool(engine.clients), self._settings.linger_timeout_s)
        # What connections that were new brought meanwhile has the rest of the time.
        await self._wait_while(lambda: bool(engine.in_flight), end - asyncio.get_running_loop().time())

    async def _wait_while(self, busy: Callable[[], bool], timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while busy():
                    self._engine.changed.clear()
                    await self._engine.changed.wait()


def _keep_alive(listener: socket.socket) -> None:
    """Have the kernel find clients whose machine or network is gone; what is accepted inherits it (tcp(7))."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        listener.setsockopt(socket.IPPROTO_TCP, option, value)


async def _renewals(certificate: Certificate) -> None:
    while True:
        await asyncio.sleep(LOOK_S)
        certificate.renew()
