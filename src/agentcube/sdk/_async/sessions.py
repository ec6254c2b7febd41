"""Sessions of both kinds, by their ids: their lives, and what is inside them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, BinaryIO

from agentcube.sdk._async._calls import AsyncSandboxCalls
from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async._stream import AsyncEventStream
from agentcube.sdk._async.ports import AsyncPorts
from agentcube.sdk._async.sandbox import AsyncSandbox
from agentcube.sdk._core import phases, requests, results
from agentcube.sdk._core.config import Servers
from agentcube.sdk._core.events import PhaseChanged
from agentcube.sdk._core.localfile import open_local
from agentcube.sdk._core.requests import Duration, seconds
from agentcube.sdk._core.results import CommandResult, FileInfo, SessionInfo
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE


class AsyncSessions:
    """`AsyncAgentCube.sessions`: sessions of both kinds, and what is inside them.

    Durations are seconds, a timedelta, or text such as "1h30m"; timeouts are seconds. Paths are relative
    to a session's workspace.
    """

    def __init__(self, connection: AsyncConnection, servers: Servers) -> None:
        self._connection = connection
        self._servers = servers
        self._base = servers.manager_url
        self._router_url = servers.router_url

    async def create(
        self,
        kind: str = "CodeInterpreter",
        name: str = BUILT_IN_INTERPRETER,
        *,
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
        body = requests.session_of(
            kind,
            name,
            namespace=namespace,
            ttl=ttl,
            idle_timeout=idle_timeout,
            suspend_after=suspend_after,
            env=env,
            metadata=metadata,
            resources=resources,
        )
        request = requests.create_session(self._base, body, idempotency_key=idempotency_key)
        return await self._one(request)

    async def open(
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
        keep: bool = False,
    ) -> AsyncSandbox:
        """A new session, from the inside: use it as a block, which deletes it in the end, unless `keep`."""
        made = await self.create(
            kind,
            name,
            namespace=namespace,
            ttl=ttl,
            idle_timeout=idle_timeout,
            suspend_after=suspend_after,
            env=env,
            metadata=metadata,
            resources=resources,
        )
        box = AsyncSandbox.of(self._connection, self._servers, made.id, keep=keep)
        if made.phase == "Failed":
            await box.delete()
            raise results.start_failure(made)
        return box

    def sandbox(self, session_id: str) -> AsyncSandbox:
        """A session that exists, from the inside. Nothing is asked before it is used; closing it leaves the session."""
        return AsyncSandbox.of(self._connection, self._servers, session_id)

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
        metadata: Mapping[str, str | None] | None = None,
    ) -> SessionInfo:
        """Change what is given and leave the rest.

        `suspend_after="never"` turns suspension off; a key of `metadata` with the value None is removed.
        """
        body: dict[str, Any] = {
            "ttl": seconds(ttl),
            "idle_timeout": seconds(idle_timeout),
            "suspend_after": seconds(suspend_after),
            "metadata": None if metadata is None else dict(metadata),
        }
        given = {key: value for key, value in body.items() if value is not None}
        if suspend_after == "never":
            given["suspend_after"] = None
        return await self._one(requests.update_session(self._base, session_id, given))

    async def suspend(self, session_id: str) -> SessionInfo:
        """Put a session to sleep: its processes stand still, with their state, until a request or `resume` wakes it.

        Idempotent. Raises SessionBusy while requests of it are under way, SuspendUnsupported where the server's
        machine cannot suspend, SuspendFailed.
        """
        return await self._one(phases.suspend_session(self._base, session_id))

    async def resume(self, session_id: str) -> SessionInfo:
        """Wake a session, as any request does by itself. Idempotent.

        Raises WakeFailed: then it sleeps on, and nothing of it is lost.
        """
        return await self._one(phases.resume_session(self._base, session_id))

    def events(self, session_id: str, *, after: int | None = None) -> AsyncEventStream[PhaseChanged]:
        """Every phase that a session comes to, as it happens, until it is Deleted.

        Begins with the present one, or behind change number `after` (0: everything that is on record). A
        connection that is lost is made again. Watching keeps no session awake. Raises SessionNotFound, also
        when the session ended while the connection was lost.
        """
        track = phases.PhaseTrack(self._base, session_id, after=after)
        return AsyncEventStream(self._connection, track)

    def ports(self, session_id: str) -> AsyncPorts:
        """Ports of a session: exposed, and shared by link. Nothing is asked before it is used."""
        return AsyncPorts(self._connection, self._servers, session_id)

    async def delete(self, session_id: str, *, missing_ok: bool = False) -> None:
        """Delete a session. Raises SessionNotFound, unless `missing_ok`."""
        request = requests.delete_session(self._base, session_id)
        await self._connection.send(
            request, accept=lambda r: r.is_success or (missing_ok and r.status_code == 404)
        )

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

    async def write_file(
        self, session_id: str, path: str, content: bytes | str, *, mode: str = "0644"
    ) -> FileInfo:
        """Write a whole file; text as UTF-8. `mode` is octal permission bits."""
        data = content.encode("utf-8") if isinstance(content, str) else content
        return await self._in(session_id).write(path, data, mode=mode)

    async def read_file(self, session_id: str, path: str) -> bytes:
        """A file's bytes, all in memory."""
        return b"".join([chunk async for chunk in self.stream_file(session_id, path)])

    def stream_file(self, session_id: str, path: str) -> AsyncIterator[bytes]:
        """A file's bytes as they arrive. Raises TransferIncomplete when they break off."""
        return self._in(session_id).chunks(path)

    async def upload_file(
        self, session_id: str, source: str | os.PathLike[str] | BinaryIO, path: str, *, mode: str = "0644"
    ) -> FileInfo:
        """Stream a local file, or an open binary file or pipe from where it stands, to the workspace."""
        calls = self._in(session_id)
        if isinstance(source, str | os.PathLike):
            with open_local(source) as file:
                return await calls.upload(file, path, mode=mode)
        return await calls.upload(source, path, mode=mode)

    async def download_file(self, session_id: str, path: str, local_path: str | os.PathLike[str]) -> None:
        """Stream a file of the workspace to disk, where it appears whole or not at all."""
        await self._in(session_id).download(path, local_path)

    async def list_files(self, session_id: str, path: str = ".") -> Sequence[FileInfo]:
        """The entries of a directory."""
        return await self._in(session_id).list_infos(path)

    def _in(self, session_id: str) -> AsyncSandboxCalls:
        place = requests.place_of_session(self._router_url, session_id)
        return AsyncSandboxCalls(self._connection, place)

    async def _one(self, request: requests.Request) -> SessionInfo:
        response = await self._connection.send(request)
        return results.session_info(results.object_of(response.content, request.what), request.what)
