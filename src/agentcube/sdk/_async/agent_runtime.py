"""The client of AgentRuntime sessions that programs for the Go system use, unchanged."""

from __future__ import annotations

import json
import warnings
from types import TracebackType
from typing import Any, Self

import httpx2

from agentcube.sdk._async._connection import AsyncConnection, log
from agentcube.sdk._core import requests
from agentcube.sdk._core.auth import AuthProvider
from agentcube.sdk._core.config import resolve
from agentcube.sdk._core.errors import ClientClosed, UnexpectedAnswer
from agentcube.sdk._core.log import be_verbose
from agentcube.wire.names import SESSION_HEADER

KIND = "AgentRuntime"


class AsyncAgentRuntimeClient:
    # [async
    """One AgentRuntime session: call the agent's own HTTP server, always in the same sandbox.

        async with AsyncAgentRuntimeClient("parrot") as agent:
            print(await agent.invoke({"say": "hello"}))

    The session is made on entering the block, or by `create`. Leaving the block closes the connections
    and leaves the session, which anyone may go on using by its `session_id` until it has been idle for
    its timeout; `stop` deletes it.
    """

    # async]
    # sync: """One AgentRuntime session: call the agent's own HTTP server, always in the same sandbox.
    # sync:
    # sync:     with AgentRuntimeClient("parrot") as agent:
    # sync:         print(agent.invoke({"say": "hello"}))
    # sync:
    # sync: The session is made by the constructor. Leaving the block closes the connections and leaves
    # sync: the session, which anyone may go on using by its `session_id` until it has been idle for its
    # sync: timeout; `stop` deletes it.
    # sync: """

    def __init__(
        self,
        agent_name: str,
        namespace: str = "default",
        router_url: str | None = None,
        verbose: bool = False,
        session_id: str | None = None,
        timeout: float = 120,
        connect_timeout: float = 5.0,
        auth_token: str | None = None,
        auth: AuthProvider | None = None,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Timeouts in seconds. Address and key are found as docs/how-to/use-the-sdk.md says.

        Raises NotConfigured when no server is known.
        """
        self._open_connection: AsyncConnection | None = None
        servers = resolve(router_url=router_url, token=auth_token, auth=auth, argument="router_url")
        be_verbose(verbose)
        self.agent_name = agent_name
        self.namespace = namespace
        self.timeout = timeout
        self.connect_timeout = connect_timeout
        self.router_url: str = servers.router_url
        self.session_id: str | None = session_id
        self._manager_url = servers.manager_url
        self._base = requests.invocations(self.router_url, KIND, namespace, agent_name)
        self._open_connection = AsyncConnection(
            servers, connect_timeout_s=connect_timeout, transport=transport
        )
        # sync: self._open()

    # [async
    @classmethod
    async def create(
        cls,
        agent_name: str,
        namespace: str = "default",
        router_url: str | None = None,
        verbose: bool = False,
        session_id: str | None = None,
        timeout: float = 120,
        connect_timeout: float = 5.0,
        auth_token: str | None = None,
        auth: AuthProvider | None = None,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> Self:
        """A client whose session exists. Call `close` or `stop` when done."""
        client = cls(
            agent_name,
            namespace,
            router_url,
            verbose,
            session_id,
            timeout,
            connect_timeout,
            auth_token,
            auth,
            transport=transport,
        )
        await client._open()
        return client

    # async]

    async def _open(self) -> None:
        """Make the session, unless there is one; on failure close the connection."""
        if self.session_id is not None:
            return
        what = f"create a session of {KIND} {self.namespace}/{self.agent_name}"
        request = requests.bootstrap(self._base, what=what, timeout_s=self.timeout)
        try:
            # The agent need not have a route for GET, and may stream what it answers: a session that exists
            # is all that is asked.
            async with self._connection.stream(
                request, accept=lambda r: SESSION_HEADER in r.headers or r.is_success
            ) as response:
                self.session_id = response.headers.get(SESSION_HEADER)
        except BaseException:
            await self.close()
            raise
        if not self.session_id:
            await self.close()
            raise UnexpectedAnswer(f"{what}: the answer has no header {SESSION_HEADER}")
        log.debug("session %s created", self.session_id)

    async def __aenter__(self) -> Self:
        # [async
        await self._open()
        # async]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def invoke(self, payload: Any, timeout: float | None = None, path: str = "") -> Any:
        """What the agent answers to a JSON POST: parsed where it is JSON, else the text.

        `path` is appended to the invocation URL and may carry a query. `timeout` is the longest silence in
        seconds. Never repeated once the agent may have seen it. An answer above 399 is raised: the
        Router's errors as their own class, the agent's by its status.
        """
        if self.session_id is None:
            raise ClientClosed("there is no session: it was stopped, or not created yet")
        request = requests.invoke(
            self._base,
            self.session_id,
            payload,
            path=path,
            what=f"invoke {KIND} {self.namespace}/{self.agent_name}",
            timeout_s=self.timeout if timeout is None else timeout,
        )
        response = await self._connection.send(request)
        try:
            return json.loads(response.content)
        except ValueError:
            return response.text

    async def stop(self) -> None:
        """Delete the session and close the connections. Idempotent; a session already gone is no error."""
        if self._open_connection is None:
            return
        try:
            if self.session_id is not None:
                request = requests.delete_compat(self._manager_url, KIND, self.session_id)
                await self._connection.send(request, accept=lambda r: r.is_success or r.status_code == 404)
                self.session_id = None
        finally:
            await self.close()

    async def close(self) -> None:
        """Close the connections and leave the session. Idempotent."""
        connection, self._open_connection = self._open_connection, None
        if connection is not None:
            await connection.aclose()

    @property
    def _connection(self) -> AsyncConnection:
        if self._open_connection is None:
            raise ClientClosed("this client was closed: make a new one")
        return self._open_connection

    def __del__(self) -> None:
        if getattr(self, "_open_connection", None) is not None:
            warnings.warn(f"{self!r} was dropped without close()", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.namespace}/{self.agent_name} session={self.session_id}>"
