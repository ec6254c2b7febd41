"""The management client: sessions of both kinds, templates, pools, and any session's sandbox by its id."""

from __future__ import annotations

import os
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self

import httpx2

from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async._sandbox import AsyncSandboxCalls
from agentcube.sdk._core import requests, results
from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.config import resolve
from agentcube.sdk._core.localfile import open_local
from agentcube.sdk._core.requests import Duration, seconds
from agentcube.sdk._core.results import CommandResult, FileInfo, PoolInfo, SessionInfo, TemplateInfo
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE


class AsyncSessions:
    """`AsyncAgentCube.sessions`. Durations are seconds, a timedelta, or text such as "1h30m"."""

    def __init__(self, connection: AsyncConnection, base: str) -> None:
        self._connection = connection
        self._base = base

    async def create(
        self,
        name: str = BUILT_IN_INTERPRETER,
        *,
        kind: str = "CodeInterpreter",
        namespace: str = BUILT_IN_NAMESPACE,
        ttl: Duration | None = None,
        idle_timeout: Duration | None = None,
        suspend_after: Duration | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> SessionInfo:
        """A new session, ready to use.

        Repeated safely: each call carries an Idempotency-Key of its own. Give one to make the call itself
        repeatable by the program, within 24 hours and with the same arguments.
        """
        body = {
            "kind": kind,
            "namespace": namespace,
            "name": name,
            "ttl": seconds(ttl),
            "idle_timeout": seconds(idle_timeout),
            "suspend_after": seconds(suspend_after),
            "env": dict(env) if env else None,
            "metadata": dict(metadata) if metadata else None,
            "resources": dict(resources) if resources else None,
        }
        request = requests.create_session(self._base, body, idempotency_key=idempotency_key)
        return await self._one(request)

    async def get(self, session_id: str) -> SessionInfo:
        """One session. Raises SessionNotFound."""
        return await self._one(requests.get_session(self._base, session_id))

    async def list(
        self,
        *,
        namespace: str | None = None,
        kind: str | None = None,
        phase: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> AsyncIterator[SessionInfo]:
        """Every session that matches, fetched a page at a time while it is iterated over."""
        filters = {"namespace": namespace, "kind": kind, "phase": phase}
        filters |= {f"metadata.{key}": value for key, value in (metadata or {}).items()}
        cursor: str | None = None
        while True:
            request = requests.list_sessions(self._base, filters, limit=page_size, cursor=cursor)
            response = await self._connection.send(request)
            items, cursor = results.page(response.content, request.what)
            for item in items:
                yield results.session_info(item, request.what)
            if cursor is None:
                return

    async def update(
        self,
        session_id: str,
        *,
        ttl: Duration | None = None,
        idle_timeout: Duration | None = None,
        suspend_after: Duration | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> SessionInfo:
        """Change what is given and leave the rest. A new `ttl` counts from now."""
        body = {
            "ttl": seconds(ttl),
            "idle_timeout": seconds(idle_timeout),
            "suspend_after": seconds(suspend_after),
            "metadata": None if metadata is None else dict(metadata),
        }
        given = {key: value for key, value in body.items() if value is not None}
        return await self._one(requests.update_session(self._base, session_id, given))

    async def delete(self, session_id: str, *, missing_ok: bool = False) -> None:
        """Delete a session. Raises SessionNotFound, unless `missing_ok`."""
        request = requests.delete_session(self._base, session_id)
        await self._connection.send(
            request, accept=lambda r: r.is_success or (missing_ok and r.status_code == 404)
        )

    async def _one(self, request: requests.Request) -> SessionInfo:
        response = await self._connection.send(request)
        return results.session_info(results.object_of(response.content, request.what), request.what)


class AsyncTemplates:
    """`AsyncAgentCube.templates`: AgentRuntimes and CodeInterpreters, as their manifests."""

    def __init__(self, connection: AsyncConnection, base: str) -> None:
        self._connection = connection
        self._base = base

    async def put(self, manifest: Mapping[str, Any], *, namespace: str | None = None) -> TemplateInfo:
        """Create or replace the template of a manifest, the same as for a cluster.

        `namespace` is for manifests that name none (default: "default").
        """
        kind, space, name = requests.address_of(manifest, namespace)
        request = requests.template(self._base, "PUT", kind, space, name, json=manifest)
        response = await self._connection.send(request)
        value = results.object_of(response.content, request.what)
        return results.template_info(value, request.what, created=response.status_code == 201)

    async def get(self, kind: str, name: str, *, namespace: str = BUILT_IN_NAMESPACE) -> TemplateInfo:
        """One template. Raises TemplateNotFound."""
        request = requests.template(self._base, "GET", kind, namespace, name)
        response = await self._connection.send(request)
        return results.template_info(results.object_of(response.content, request.what), request.what)

    async def list(self, kind: str, *, namespace: str = BUILT_IN_NAMESPACE) -> AsyncIterator[TemplateInfo]:
        """The templates of a kind in a namespace."""
        cursor: str | None = None
        while True:
            request = requests.list_templates(self._base, kind, namespace, cursor=cursor)
            response = await self._connection.send(request)
            items, cursor = results.page(response.content, request.what)
            for item in items:
                yield results.template_info(item, request.what)
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


class AsyncFiles:
    """`AsyncAgentCube.files`: the workspace of any session. Paths are relative to it."""

    def __init__(self, connection: AsyncConnection, base: str) -> None:
        self._connection = connection
        self._base = base

    async def write(
        self, session_id: str, path: str, content: bytes | str, *, mode: str = "0644"
    ) -> FileInfo:
        """Write a whole file; text as UTF-8. `mode` is octal permission bits."""
        data = content.encode("utf-8") if isinstance(content, str) else content
        return await self._in(session_id).write(path, data, mode=mode)

    async def read(self, session_id: str, path: str) -> bytes:
        """A file's bytes, all in memory."""
        return b"".join([chunk async for chunk in self.stream(session_id, path)])

    def stream(self, session_id: str, path: str) -> AsyncIterator[bytes]:
        """A file's bytes as they arrive. Raises TransferIncomplete when they break off."""
        return self._in(session_id).chunks(path)

    async def upload(
        self, session_id: str, source: str | os.PathLike[str] | BinaryIO, path: str, *, mode: str = "0644"
    ) -> FileInfo:
        """Stream a local file, or an open binary file or pipe from where it stands, to the workspace."""
        calls = self._in(session_id)
        if isinstance(source, str | os.PathLike):
            with open_local(source) as file:
                return await calls.upload(file, path, mode=mode)
        return await calls.upload(source, path, mode=mode)

    async def download(self, session_id: str, path: str, local_path: str | os.PathLike[str]) -> None:
        """Stream a file of the workspace to disk, where it appears whole or not at all."""
        await self._in(session_id).download(path, local_path)

    async def list(self, session_id: str, path: str = ".") -> Sequence[FileInfo]:
        """The entries of a directory."""
        return await self._in(session_id).list_infos(path)

    def _in(self, session_id: str) -> AsyncSandboxCalls:
        return AsyncSandboxCalls(self._connection, requests.sandbox_of_session(self._base, session_id))


class AsyncAgentCube:
    """Everything the API has, at one address.

        async with AsyncAgentCube() as cube:
            session = await cube.sessions.create(ttl=600)
            result = await cube.exec(session.id, ["python3", "-V"])

    Without arguments the address and key are found as docs/how-to/use-the-sdk.md says. `timeout` is the
    longest silence of a server, in seconds, for calls that do not say otherwise.
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
        self.url = servers.router_url
        connection = AsyncConnection(servers, connect_timeout_s=connect_timeout, transport=transport)
        self._connection = connection
        self.sessions = AsyncSessions(connection, servers.manager_url)
        self.templates = AsyncTemplates(connection, servers.manager_url)
        self.pools = AsyncPools(connection, servers.manager_url)
        self.files = AsyncFiles(connection, servers.router_url)

    async def exec(
        self,
        session_id: str,
        command: str | Sequence[str],
        *,
        timeout: float | None = None,
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        working_dir: str | None = None,
    ) -> CommandResult:
        """Run a command in a session and wait for it; the exit code is in the result.

        A string is split into words as a shell would, but no shell runs it. `timeout` in seconds
        (default 120); when it strikes, the whole process tree is killed and the exit code is 124.
        """
        return await self._in(session_id).run(
            command, timeout_s=timeout, stdin=stdin, env=env, working_dir=working_dir
        )

    async def logs(self, session_id: str, *, stream: str = "both", tail_bytes: int | None = None) -> bytes:
        """What the command of an AgentRuntime wrote: `stream` is "stdout", "stderr" or "both"."""
        return await self._in(session_id).logs(stream=stream, tail_bytes=tail_bytes)

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

    def _in(self, session_id: str) -> AsyncSandboxCalls:
        sandbox = requests.sandbox_of_session(self.url, session_id)
        return AsyncSandboxCalls(self.files._connection, sandbox)

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {getattr(self, 'url', '')}>"
