"""Ports of a session: what listens in it, shown to its owner, and to others by link."""

from __future__ import annotations

from collections.abc import Sequence

from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._core import ports, results
from agentcube.sdk._core.config import Servers
from agentcube.sdk._core.ports import PortInfo, ShareLink
from agentcube.sdk._core.requests import Duration, Request


class AsyncPorts:
    """`AsyncSandbox.ports`: TCP ports that servers in the session listen on, on its loopback or on all addresses."""

    def __init__(self, connection: AsyncConnection, servers: Servers, session_id: str) -> None:
        self._connection = connection
        self._servers = servers
        self._id = session_id

    async def list(self) -> Sequence[PortInfo]:
        """The ports that may be reached: those of the template, and those that were exposed since."""
        request = ports.list_ports(self._servers.manager_url, self._id)
        response = await self._connection.send(request)
        items, _ = results.page(response.content, request.what)
        return [ports.port_info(item, request.what, self._servers.router_url) for item in items]

    async def expose(self, port: int) -> PortInfo:
        """Let a port be reached by you. Idempotent; nothing needs to listen there yet."""
        request = ports.expose_port(self._servers.manager_url, self._id, port)
        response = await self._connection.send(request)
        value = results.object_of(response.content, request.what)
        return ports.port_info(value, request.what, self._servers.router_url)

    async def withdraw(self, port: int) -> None:
        """Let a port be reached no longer, and end its share links and what was opened with them.

        A port that the template declares stays reachable for you. Raises NotFound.
        """
        await self._connection.send(ports.withdraw_port(self._servers.manager_url, self._id, port))

    async def share(self, port: int, *, ttl: Duration | None = None) -> ShareLink:
        """A link for browsers, exposing the port if it is not.

        Good for `ttl` (default one hour, at most 30 days), and no longer than the session or the exposure.
        """
        request: Request = ports.share_port(self._servers.manager_url, self._id, port, ttl)
        response = await self._connection.send(request)
        return ports.share_link(results.object_of(response.content, request.what), request.what)
