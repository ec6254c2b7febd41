"""The client of CodeInterpreter sessions that programs for the Go system use, unchanged."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx2

from agentcube.errors import AgentCubeError
from agentcube.sdk._async._calls import AsyncSandboxCalls
from agentcube.sdk._async._connection import AsyncConnection, log
from agentcube.sdk._core import requests, results
from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.config import resolve
from agentcube.sdk._core.errors import ClientClosed, CommandExecutionError
from agentcube.sdk._core.localfile import open_local
from agentcube.sdk._core.log import be_verbose
from agentcube.sdk._core.scripts import script

KIND = "CodeInterpreter"


class AsyncCodeInterpreterClient:
    # [async
    """One CodeInterpreter session: run code, move files.

        async with AsyncCodeInterpreterClient() as client:
            print(await client.run_code("python", "print(6 * 7)"))

    The session is made on entering the block, or by `create`, and deleted on leaving it, or by `stop`.
    Files stay for the session's life; each call is a fresh process, so variables do not. With
    `session_id`, an existing session is used instead of a new one; `stop` deletes it as well.
    """

    # async]
    # sync: """One CodeInterpreter session: run code, move files.
    # sync:
    # sync:     with CodeInterpreterClient() as client:
    # sync:         print(client.run_code("python", "print(6 * 7)"))
    # sync:
    # sync: The session is made by the constructor, and deleted on leaving the block, or by `stop`.
    # sync: Files stay for the session's life; each call is a fresh process, so variables do not. With
    # sync: `session_id`, an existing session is used instead of a new one; `stop` deletes it as well.
    # sync: """

    def __init__(
        self,
        name: str = "my-interpreter",
        namespace: str = "default",
        ttl: int = 3600,
        workload_manager_url: str | None = None,
        router_url: str | None = None,
        auth_token: str | None = None,
        verbose: bool = False,
        session_id: str | None = None,
        auth: AuthProvider | None = None,
        *,
        connect_timeout: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`ttl` in whole seconds. Addresses and key are found as docs/how-to/use-the-sdk.md says.

        Raises NotConfigured when no server is known.
        """
        self._open_connection: AsyncConnection | None = None
        servers = resolve(
            router_url=router_url,
            manager_url=workload_manager_url,
            token=auth_token,
            auth=auth,
            argument="router_url",
        )
        be_verbose(verbose)
        self.name = name
        self.namespace = namespace
        self.ttl = ttl
        self.verbose = verbose
        self.router_url: str = servers.router_url
        self.session_id: str | None = session_id
        self._manager_url = servers.manager_url
        self._open_connection = AsyncConnection(
            servers, connect_timeout_s=connect_timeout, transport=transport
        )
        # sync: self._open()

    # [async
    @classmethod
    async def create(
        cls,
        name: str = "my-interpreter",
        namespace: str = "default",
        ttl: int = 3600,
        workload_manager_url: str | None = None,
        router_url: str | None = None,
        auth_token: str | None = None,
        verbose: bool = False,
        session_id: str | None = None,
        auth: AuthProvider | None = None,
        *,
        connect_timeout: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Self:
        """A client whose session exists. Call `stop` when done."""
        client = cls(
            name,
            namespace,
            ttl,
            workload_manager_url,
            router_url,
            auth_token,
            verbose,
            session_id,
            auth,
            connect_timeout=connect_timeout,
            transport=transport,
        )
        await client._open()
        return client

    # async]

    async def _open(self) -> None:
        """Make the session, unless there is one; on failure close the connection."""
        if self.session_id is not None:
            return
        request = requests.create_compat(
            self._manager_url, KIND, name=self.name, namespace=self.namespace, ttl_s=self.ttl, metadata={}
        )
        try:
            response = await self._connection.send(request)
            self.session_id = results.created(response.content, request.what).session_id
        except BaseException:
            await self._close()
            raise
        log.debug("session %s created", self.session_id)

    async def __aenter__(self) -> Self:
        # [async
        await self._open()
        # async]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.stop()
        except AgentCubeError as failure:
            if exc is None:
                raise
            # The block's own exception is what its author must see.
            log.warning("%s", failure)

    async def stop(self) -> None:
        """Delete the session and close the connections. Idempotent; a session already gone is no error.

        When the deletion fails, the error is raised, `session_id` stays set, and the session ends by its ttl.
        """
        if self._open_connection is None:
            return
        try:
            if self.session_id is not None:
                request = requests.delete_compat(self._manager_url, KIND, self.session_id)
                await self._connection.send(request, accept=lambda r: r.is_success or r.status_code == 404)
                self.session_id = None
        finally:
            await self._close()

    async def execute_command(self, command: str | Sequence[str], timeout: float | None = None) -> str:
        """The standard output of a command.

        A string is split into words as a shell would, but no shell runs it. `timeout` in seconds (default
        120); when it strikes, the whole process tree is killed and the exit code is 124.

        Raises:
            CommandExecutionError: the exit code is not 0.
        """
        result = await self.execute_command_result(command, timeout)
        if result["exit_code"] != 0:
            raise CommandExecutionError(result["exit_code"], result["stderr"], command)
        return str(result["stdout"])

    async def execute_command_result(
        self, command: str | Sequence[str], timeout: float | None = None
    ) -> dict[str, Any]:
        """`stdout`, `stderr` and `exit_code` of a command, as `execute_command` but for the exception."""
        return await self._sandbox.output(command, timeout_s=timeout or None)

    async def run_code(self, language: str, code: str, timeout: float | None = None) -> str:
        """The standard output of a piece of code ("python" or "bash").

        The code is written to a script in the workspace and run from there. Python whose newlines were
        escaped twice is repaired. Raises as `execute_command`; InvalidArgument for another language.
        """
        made = script(language, code)
        if made.repaired:
            log.warning("the code's newlines were escaped twice; they have been repaired")
        await self.write_file(made.source, made.path)
        return await self.execute_command(list(made.command), timeout)

    async def write_file(self, content: str, remote_path: str) -> None:
        """Write text, as UTF-8, to a file of the workspace."""
        await self._sandbox.write(remote_path, content.encode("utf-8"))

    async def upload_file(self, local_path: str | os.PathLike[str], remote_path: str) -> None:
        """Stream a local file of any size into the workspace. Raises FileNotFoundError and the like."""
        with open_local(local_path) as file:
            await self._sandbox.upload(file, remote_path)

    async def download_file(self, remote_path: str, local_path: str | os.PathLike[str]) -> None:
        """Stream a file of the workspace to disk, where it appears whole or not at all.

        Missing local directories are made. Raises FileNotFound when there is no such file in the workspace.
        """
        await self._sandbox.download(remote_path, local_path)

    async def list_files(self, path: str = ".") -> list[dict[str, Any]]:
        """The entries of a directory: dicts with `name`, `size`, `modified`, `mode`, `is_dir`."""
        return await self._sandbox.list_dicts(path)

    @property
    def _connection(self) -> AsyncConnection:
        if self._open_connection is None:
            raise ClientClosed("this client was stopped: make a new one")
        return self._open_connection

    @property
    def _sandbox(self) -> AsyncSandboxCalls:
        connection = self._connection
        if self.session_id is None:
            # [async
            raise ClientClosed("there is no session yet: use `async with`, or `await …Client.create(…)`")
            # async]
            # sync: raise ClientClosed("this client was stopped: make a new one")
        place = requests.place_of_interpreter(self.router_url, self.namespace, self.name, self.session_id)
        return AsyncSandboxCalls(connection, place)

    async def _close(self) -> None:
        connection, self._open_connection = self._open_connection, None
        if connection is not None:
            await connection.aclose()

    def __del__(self) -> None:
        if getattr(self, "_open_connection", None) is not None:
            warnings.warn(f"{self!r} was dropped without stop()", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.name} session={self.session_id}>"
