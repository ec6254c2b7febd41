"""A session from the inside: run code, commands, files, terminals. The first thing that a user meets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async._primitives import whatever_happens
from agentcube.sdk._async._stream import AsyncEventStream
from agentcube.sdk._async.commands import AsyncCommands
from agentcube.sdk._async.files import AsyncFiles
from agentcube.sdk._async.kernels import TIMEOUT_S, WAIT_S, AsyncKernel, AsyncKernels
from agentcube.sdk._async.ports import AsyncPorts
from agentcube.sdk._async.terminal import AsyncPty
from agentcube.sdk._core import requests, results
from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.config import Servers, resolve
from agentcube.sdk._core.display import Result
from agentcube.sdk._core.errors import ClientClosed
from agentcube.sdk._core.events import CellEvent
from agentcube.sdk._core.execution import Execution
from agentcube.sdk._core.kernels import DEFAULT_KERNELS, language_of
from agentcube.sdk._core.requests import Duration
from agentcube.sdk._core.results import SessionInfo
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE

DELETE_WITHIN_S = 60.0


class AsyncSandbox:
    # [async
    """One session and what is inside it.

        async with AsyncSandbox() as box:
            print((await box.run("6 * 7")).text)

    The session is made on entering the block, or by `create`, and deleted on leaving it, or by `close`; with `keep` it
    stays. Variables and files stay for the session's life. `connect` goes on in a session that exists.
    """

    # async]
    # sync: """One session and what is inside it.
    # sync:
    # sync:     with Sandbox() as box:
    # sync:         print(box.run("6 * 7").text)
    # sync:
    # sync: The session is made by the constructor, and deleted on leaving the block, or by `close`; with `keep` it
    # sync: stays. Variables and files stay for the session's life. `connect` goes on in a session that exists.
    # sync: """

    def __init__(
        self,
        template: str = BUILT_IN_INTERPRETER,
        *,
        namespace: str = BUILT_IN_NAMESPACE,
        ttl: Duration | None = None,
        idle_timeout: Duration | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        keep: bool = False,
        url: str | None = None,
        api_key: str | None = None,
        auth: AuthProvider | None = None,
        connect_timeout: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """A session of a CodeInterpreter. What is left out of `ttl`, `idle_timeout` and `resources` its template says.

        Durations are seconds, a timedelta, or text such as "1h30m". Address and key are found as
        docs/how-to/use-the-sdk.md says; NotConfigured is raised when no server is known.
        """
        self._open_connection: AsyncConnection | None = None
        self._owns_connection = True
        self._id: str | None = None
        self._keep = keep
        self._asked = requests.session_of(
            "CodeInterpreter",
            template,
            namespace=namespace,
            ttl=ttl,
            idle_timeout=idle_timeout,
            env=env,
            metadata=metadata,
            resources=resources,
        )
        self._servers = resolve(url=url, token=api_key, auth=auth)
        self._open_connection = AsyncConnection(
            self._servers, connect_timeout_s=connect_timeout, transport=transport
        )
        # sync: self._make()

    # [async
    @classmethod
    async def create(
        cls,
        template: str = BUILT_IN_INTERPRETER,
        *,
        namespace: str = BUILT_IN_NAMESPACE,
        ttl: Duration | None = None,
        idle_timeout: Duration | None = None,
        env: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        resources: Mapping[str, Any] | None = None,
        keep: bool = False,
        url: str | None = None,
        api_key: str | None = None,
        auth: AuthProvider | None = None,
        connect_timeout: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Self:
        """A sandbox whose session exists. Call `close` when done."""
        box = cls(
            template,
            namespace=namespace,
            ttl=ttl,
            idle_timeout=idle_timeout,
            env=env,
            metadata=metadata,
            resources=resources,
            keep=keep,
            url=url,
            api_key=api_key,
            auth=auth,
            connect_timeout=connect_timeout,
            transport=transport,
        )
        await box._make()
        return box

    # async]

    @classmethod
    async def connect(
        cls,
        session_id: str,
        *,
        url: str | None = None,
        api_key: str | None = None,
        auth: AuthProvider | None = None,
        connect_timeout: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Self:
        """A session that exists, of either kind; `close` leaves it as it is. Raises SessionNotFound."""
        servers = resolve(url=url, token=api_key, auth=auth)
        connection = AsyncConnection(servers, connect_timeout_s=connect_timeout, transport=transport)
        box = cls.of(connection, servers, session_id)
        box._owns_connection = True
        try:
            await box.info()
        except BaseException:
            await box.close()
            raise
        return box

    @classmethod
    def of(cls, connection: AsyncConnection, servers: Servers, session_id: str, *, keep: bool = True) -> Self:
        """A session, over a connection that somebody else closes: how `AsyncAgentCube.sessions` makes one."""
        box = cls.__new__(cls)
        box._open_connection = connection
        box._owns_connection = False
        box._id = session_id
        box._keep = keep
        box._asked = {}
        box._servers = servers
        return box

    # Running code

    async def run(
        self,
        code: str,
        language: str = "python",
        *,
        timeout: float | None = TIMEOUT_S,
        wait: float = WAIT_S,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        on_result: Callable[[Result], object] | None = None,
        check: bool = False,
    ) -> Execution:
        """Run code ("python" or "bash") as a cell of a notebook: what it defines, later calls see.

        An exception in the code is in the result's `error`; with `check` CellFailed is raised instead. When `timeout`
        (seconds; None: none) strikes, and when this call is cancelled, the cell is interrupted. While other code
        runs, this waits in line for `wait` seconds, at most 600; then KernelBusy is raised. The callbacks get what the
        cell shows, as it comes.
        """
        return await self._kernel(language).run(
            code,
            timeout=timeout,
            wait=wait,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_result=on_result,
            check=check,
        )

    def stream(
        self, code: str, language: str = "python", *, timeout: float | None = TIMEOUT_S, wait: float = WAIT_S
    ) -> AsyncEventStream[CellEvent]:
        """As `run`, and get the events as they happen. Stopping before the last one interrupts the cell."""
        return self._kernel(language).stream(code, timeout=timeout, wait=wait)

    @property
    def commands(self) -> AsyncCommands:
        """Commands and other programs."""
        return AsyncCommands(self._connection, self._place)

    @property
    def files(self) -> AsyncFiles:
        """Files of the workspace."""
        return AsyncFiles(self._connection, self._place)

    @property
    def kernels(self) -> AsyncKernels:
        """Kernels, for code in more than one context."""
        return AsyncKernels(self._connection, self._place)

    @property
    def pty(self) -> AsyncPty:
        """Terminals."""
        return AsyncPty(self._connection, self._place)

    @property
    def ports(self) -> AsyncPorts:
        """Ports that servers inside listen on: exposed, and shared by link."""
        return AsyncPorts(self._connection, self._servers, self.session_id)

    # The session

    @property
    def session_id(self) -> str:
        """The session's id, for `connect`. Raises ClientClosed when there is none."""
        if self._id is None:
            # [async
            raise ClientClosed("there is no session: use `async with`, or `await AsyncSandbox.create(…)`")
            # async]
            # sync: raise ClientClosed("the session was deleted: make a new sandbox")
        return self._id

    async def info(self) -> SessionInfo:
        """The session as it is now. Raises SessionNotFound."""
        request = requests.get_session(self._servers.manager_url, self.session_id)
        response = await self._connection.send(request)
        return results.session_info(results.object_of(response.content, request.what), request.what)

    async def delete(self) -> None:
        """Delete the session with all that is in it, whoever made it, and close. No error when it is gone already."""
        self._keep = False
        await self.close()

    async def close(self) -> None:
        """Delete the session, if this object made it and was not told to `keep` it, and close the connections.

        Idempotent. When the deletion fails, the error is raised and the session ends by its own timeouts.
        """
        connection, self._open_connection = self._open_connection, None
        if connection is None:
            return
        try:
            if self._id is not None and not self._keep:
                request = requests.delete_session(self._servers.manager_url, self._id)
                await connection.send(request, accept=lambda r: r.is_success or r.status_code == 404)
                self._id = None
        finally:
            if self._owns_connection:
                await connection.aclose()

    async def __aenter__(self) -> Self:
        # [async
        if self._id is None:
            await self._make()
        # async]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if exc is None:
            await self.close()
        else:  # the block's own exception is what its author must see
            await whatever_happens(self.close, "close the sandbox", within_s=DELETE_WITHIN_S)

    async def _make(self) -> None:
        """Make the session; on failure close the connection."""
        request = requests.create_session(self._servers.manager_url, self._asked)
        try:
            response = await self._connection.send(request)
            made = results.session_info(results.object_of(response.content, request.what), request.what)
            self._id = made.id
            if made.phase == "Failed":
                raise results.start_failure(made)
        except BaseException:
            await whatever_happens(self.close, "close the sandbox", within_s=DELETE_WITHIN_S)
            raise

    def _kernel(self, language: str) -> AsyncKernel:
        known = language_of(language)
        return AsyncKernel(self._connection, self._place, DEFAULT_KERNELS[known], known, make=True)

    @property
    def _connection(self) -> AsyncConnection:
        if self._open_connection is None:
            raise ClientClosed("this sandbox was closed: make a new one, or connect to its session again")
        return self._open_connection

    @property
    def _place(self) -> requests.Place:
        return requests.place_of_session(self._servers.router_url, self.session_id)

    def __del__(self) -> None:
        if getattr(self, "_open_connection", None) is not None and self._owns_connection:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} session={self._id}>"
