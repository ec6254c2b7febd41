"""Sends requests: credentials, retries, failures translated. Everything else leaves HTTP to this file."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2

from agentcube.sdk._async._primitives import body_of, sleep, token_of, traced
from agentcube.sdk._core import http
from agentcube.sdk._core.config import Servers
from agentcube.sdk._core.errors import ClientClosed
from agentcube.sdk._core.requests import CHUNK_BYTES, Request
from agentcube.sdk._core.retry import Policy

log = logging.getLogger("agentcube.sdk")

Accept = Callable[[httpx2.Response], bool]


def _is_success(response: httpx2.Response) -> bool:
    return response.is_success


class AsyncConnection:
    """One pool of connections to the servers of a client.

    An `https` server is verified with the machine's certificates. Redirects are not followed. A given
    `transport` is used instead of the network and is closed with this.
    """

    def __init__(
        self,
        servers: Servers,
        *,
        connect_timeout_s: float = 5.0,
        transport: httpx2.AsyncBaseTransport | None = None,
        policy: Policy | None = None,
    ) -> None:
        options = http.client_options(
            {servers.router_url, servers.manager_url},
            connect_timeout_s=connect_timeout_s,
            injected=transport is not None,
        )
        self._client = httpx2.AsyncClient(transport=transport, **options)
        self._auth = servers.auth
        self._connect_timeout_s = connect_timeout_s
        self._policy = policy or Policy()

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._client.aclose()

    async def send(
        self, request: Request, *, accept: Accept = _is_success, sending: Callable[[], None] | None = None
    ) -> httpx2.Response:
        """The answer to a request, its body read.

        `accept` says which answers are wanted; by default those with a 2xx status. Raises an AgentCubeError
        for all others and for every failure, after as many retries as are safe. `sending` is called when a
        connection is there and the request is about to go out on it.
        """
        return await self._answer(request, accept, read=True, sending=sending)

    @asynccontextmanager
    async def stream(
        self, request: Request, *, accept: Accept = _is_success, sending: Callable[[], None] | None = None
    ) -> AsyncIterator[httpx2.Response]:
        """The answer to a request with its body unread, as `send` otherwise. The body may be read in the block."""
        response = await self._answer(request, accept, read=False, sending=sending)
        try:
            yield response
        finally:
            await response.aclose()

    async def chunks(self, request: Request) -> AsyncIterator[bytes]:
        """The body of the answer, as it arrives. Raises TransferIncomplete when it breaks off."""
        async with self.stream(request) as response:
            async for chunk in self.body(response, request):
                yield chunk

    async def body(
        self, response: httpx2.Response, request: Request, *, chunk_bytes: int | None = CHUNK_BYTES
    ) -> AsyncGenerator[bytes, None]:
        """The body of a streamed answer, undecoded. Raises TransferIncomplete when it breaks off.

        `chunk_bytes` None gives pieces as they come, instead of collecting them.
        """
        try:
            async for chunk in response.aiter_raw(chunk_bytes):
                yield chunk
        except httpx2.RequestError as exc:
            raise http.incomplete(exc, request) from exc

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._client.is_closed

    async def _answer(
        self, request: Request, accept: Accept, *, read: bool, sending: Callable[[], None] | None = None
    ) -> httpx2.Response:
        attempt = 0
        while True:
            response, delay = await self._attempt(request, accept, attempt, read, sending)
            if response is not None:
                return response
            log.debug("%s: attempt %d failed, trying again in %.2f s", request.what, attempt + 1, delay)
            await sleep(delay)
            attempt += 1

    async def _attempt(
        self, request: Request, accept: Accept, attempt: int, read: bool, sending: Callable[[], None] | None
    ) -> tuple[httpx2.Response | None, float]:
        """A wanted answer, or how long to wait before the next attempt; raises when there shall be none."""
        if self.is_closed:
            raise ClientClosed(f"{request.what}: this client is closed")
        try:
            response = await self._open(request, sending)
            # A deletion whose first answer was lost finds nothing the second time.
            gone = attempt > 0 and request.method == "DELETE" and response.status_code == 404
            wanted = accept(response) or gone
            if read or not wanted:
                await self._read(response)
        except (httpx2.RequestError, httpx2.InvalidURL) as exc:
            return None, self._delay_after(exc, request, attempt)
        if wanted:
            return response, 0.0
        delay = self._policy.after_answer(
            attempt,
            response.status_code,
            response.headers,
            response.content,
            repeatable=request.repeatable,
            can_resend=request.can_resend,
        )
        if delay is None:
            raise http.answer_error(response, request)
        return None, delay

    def _delay_after(self, exc: Exception, request: Request, attempt: int) -> float:
        error, sent = http.failure_of(exc, request)
        # A deadline that passed is not extended by starting over.
        if (error.retryable or sent) and not isinstance(exc, httpx2.TimeoutException):
            delay = self._policy.after_failure(attempt, sent=sent, repeatable=request.repeatable)
            if delay is not None:
                return delay
        raise error from exc

    async def _read(self, response: httpx2.Response) -> None:
        try:
            await response.aread()
        finally:
            await response.aclose()

    async def _open(self, request: Request, sending: Callable[[], None] | None) -> httpx2.Response:
        token = await token_of(self._auth) if self._auth is not None else None
        options = http.request_options(request, connect_timeout_s=self._connect_timeout_s, token=token)
        if request.upload is not None:
            options["content"] = body_of(request.upload)
        if sending is not None:
            options["extensions"] = {"trace": traced(sending)}
        return await self._client.send(self._client.build_request(**options), stream=True)
