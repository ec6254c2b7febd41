"""A local TCP port whose connections end in a session: for clients that speak anything but HTTP/1.1 (gRPC, databases).

Each connection becomes a tunnel of its own through the Router, which checks credentials and session
first and passes bytes unread from then on.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from agentcube.errors import AgentCubeError
from agentcube.sdk._async._primitives import token_of
from agentcube.sdk._core.config import Servers
from agentcube.sdk._core.errors import ConnectFailed, InvalidArgument, UnexpectedAnswer, error_of
from agentcube.sdk._core.requests import segment

log = logging.getLogger("agentcube.sdk")

OPEN_S = 75.0
"""For a tunnel to open: the Router wakes a session for up to 60 s."""

HEAD_BYTES_MAX = 64 * 1024
PROBLEM_BYTES_MAX = 64 * 1024
CHUNK_BYTES = 64 * 1024
CONNECTIONS_MAX = 128


class PortForward:
    """Listens on `host` and carries every connection to `port` of a session.

        async with PortForward(servers, session_id, 50051) as forward:
            channel = grpc.aio.insecure_channel(forward.address)

    The port must be one that the session's template declares. `local_port` 0 takes a free one. A connection
    that cannot be carried is closed, and `failure` tells why the last such one was.
    """

    def __init__(
        self, servers: Servers, session_id: str, port: int, *, host: str = "127.0.0.1", local_port: int = 0
    ) -> None:
        """Raises InvalidArgument for what is no port or session id."""
        for number, least in ((port, 1), (local_port, 0)):
            if not least <= number <= 65535:
                raise InvalidArgument(f"{number} is no port")
        self._url = urlsplit(servers.router_url)
        self._auth = servers.auth
        path = f"{self._url.path.rstrip('/')}/v1/sessions/{segment(session_id, 'session id')}/tcp/{port}"
        self._path = path
        self._what = f"reach port {port} of session {session_id}"
        self._host, self._local_port = host, local_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: AgentCubeError | None = None

    @property
    def address(self) -> str:
        """`host:port` to connect to."""
        assert self._server is not None, "not entered yet"
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._local_port, limit=CHUNK_BYTES
            )
        except OSError as exc:
            reason = (exc.strerror or str(exc)).lower()
            raise InvalidArgument(f"cannot listen on {self._host}:{self._local_port}: {reason}") from exc
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            if len(self._tasks) > CONNECTIONS_MAX:
                raise InvalidArgument(f"{CONNECTIONS_MAX} connections are forwarded already")
            inner_reader, inner_writer = await self._open()
            try:
                await _splice((reader, writer), (inner_reader, inner_writer))
            finally:
                inner_writer.close()
        except AgentCubeError as exc:
            self.failure = exc
            log.warning("%s", exc)
        except OSError as exc:
            log.debug("%s: the connection ended: %s", self._what, exc)
        finally:
            writer.close()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A tunnel. Raises an AgentCubeError."""
        token = await token_of(self._auth) if self._auth is not None else None
        host = self._url.hostname or ""
        secure = self._url.scheme == "https"
        try:
            async with asyncio.timeout(OPEN_S):
                reader, writer = await asyncio.open_connection(
                    host,
                    self._url.port or (443 if secure else 80),
                    ssl=ssl.create_default_context() if secure else None,
                    limit=HEAD_BYTES_MAX,
                )
                try:
                    await self._ask(reader, writer, token)
                except BaseException:
                    writer.close()
                    raise
                return reader, writer
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as exc:
            reason = "no answer in time" if isinstance(exc, TimeoutError) else str(exc)
            raise ConnectFailed(f"{self._what}: {reason}") from exc

    async def _ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, token: str | None
    ) -> None:
        lines = [f"GET {self._path} HTTP/1.1", f"Host: {self._url.netloc.rpartition('@')[2]}"]
        lines += ["Connection: Upgrade", "Upgrade: tcp", "User-Agent: agentcube-python"]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        writer.write("\r\n".join((*lines, "", "")).encode("latin-1"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status = head.split(" ", 2)[1] if head.startswith("HTTP/1.1 ") else ""
        if status == "101":
            return
        if len(status) != 3 or not status.isdecimal():
            raise UnexpectedAnswer(f"{self._what}: the answer is no HTTP/1.1")
        fields = [line.partition(":") for line in head.split("\r\n")[1:] if line]
        headers = {name.lower(): value.strip() for name, _, value in fields}
        length = headers.get("content-length", "0")
        body = await reader.readexactly(min(int(length) if length.isdecimal() else 0, PROBLEM_BYTES_MAX))
        raise error_of(int(status), headers, body, what=self._what)


_End = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _splice(one: _End, other: _End) -> None:
    """Carry bytes both ways; each direction ends by itself, and an error ends both."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_pump(one[0], other[1]))
        group.create_task(_pump(other[0], one[1]))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK_BYTES):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()
    else:
        sink.close()  # TLS ends as a whole
