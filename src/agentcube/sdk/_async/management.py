"""The management client: sessions, templates and warm pools."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async.sessions import AsyncSessions
from agentcube.sdk._core import requests, results
from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.config import resolve
from agentcube.sdk._core.results import PoolInfo, TemplateInfo
from agentcube.wire.names import BUILT_IN_NAMESPACE


class AsyncTemplates:
    """`AsyncAgentCube.templates`: AgentRuntimes and CodeInterpreters, as their manifests."""

    def __init__(self, connection: AsyncConnection, base: str) -> None:
        self._connection = connection
        self._base = base

    async def apply(self, manifest: Mapping[str, Any], *, namespace: str | None = None) -> TemplateInfo:
        """Create or replace the template of a manifest, the same as for a cluster.

        `namespace` is for manifests that name none (default: "default").
        """
        kind, space, name = requests.address_of(manifest, namespace)
        request = requests.template(self._base, "PUT", kind, space, name, json=manifest)
        response = await self._connection.send(request)
        value = results.object_of(response.content, request.what)
        return results.template_info(
            value, request.what, namespace=space, created=response.status_code == 201
        )

    async def get(self, kind: str, name: str, *, namespace: str = BUILT_IN_NAMESPACE) -> TemplateInfo:
        """One template. Raises TemplateNotFound."""
        request = requests.template(self._base, "GET", kind, namespace, name)
        response = await self._connection.send(request)
        return results.template_info(
            results.object_of(response.content, request.what), request.what, namespace=namespace
        )

    async def list(self, kind: str, *, namespace: str = BUILT_IN_NAMESPACE) -> AsyncIterator[TemplateInfo]:
        """The templates of a kind in a namespace."""
        cursor: str | None = None
        while True:
            request = requests.list_templates(self._base, kind, namespace, cursor=cursor)
            response = await self._connection.send(request)
            items, cursor = results.page(response.content, request.what)
            for item in items:
                yield results.template_info(item, request.what, namespace=namespace)
            if cursor is None:
                return

    async def delete(self, kind: str, name: str, *, namespace: str = BUILT_IN_NAMESPACE) -> None:
        """Delete a template and its pool; its sessions live on. Raises TemplateNotFound."""
        await self._connection.send(requests.template(self._base, "DELETE", kind, namespace, name))


class AsyncPools:
    """`AsyncAgentCube.pools`."""

    def __init__(self, connection: AsyncConnection, base: str) -> None:
        self._connection = connection
        self._base = base

    async def list(self) -> Sequence[PoolInfo]:
        """The warm pools of all templates."""
        request = requests.list_pools(self._base)
        response = await self._connection.send(request)
        items, _ = results.page(response.content, request.what)
        return [results.pool_info(item) for item in items]


class AsyncAgentCube:
    """Everything the API has, at one address.

        async with AsyncAgentCube() as cube:
            session = await cube.sessions.create(ttl=600)
            result = await cube.sessions.exec(session.id, ["python3", "-V"])

    Without arguments the address and key are found as docs/how-to/use-the-sdk.md says.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        auth: AuthProvider | None = None,
        connect_timeout: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Raises NotConfigured when no server is known."""
        self._connection: AsyncConnection | None = None
        servers = resolve(url=url, token=api_key, auth=auth)
        self.url: str = servers.router_url
        connection = AsyncConnection(servers, connect_timeout_s=connect_timeout, transport=transport)
        self._connection = connection
        self.sessions: AsyncSessions = AsyncSessions(connection, servers)
        self.templates: AsyncTemplates = AsyncTemplates(connection, servers.manager_url)
        self.pools: AsyncPools = AsyncPools(connection, servers.manager_url)

    async def close(self) -> None:
        """Close the connections. Idempotent; sessions live on."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self, 'url', '')}>"
