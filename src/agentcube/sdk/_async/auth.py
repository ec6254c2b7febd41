"""Credentials that must be fetched."""

from __future__ import annotations

import time
from collections.abc import Mapping

import httpx2

from agentcube.errors import Unauthenticated
from agentcube.sdk._async._primitives import Lock
from agentcube.sdk._core.errors import ConnectFailed, UnexpectedAnswer, error_of
from agentcube.sdk._core.results import object_of

_EARLY_S = 30.0  # renew before the end, for clocks that differ and requests under way


class AsyncServiceAccountAuth:
    """A program's own account at an OAuth 2 server: the client-credentials grant (RFC 6749 §4.4).

    The token is fetched on first use, kept until shortly before it expires, and fetched once however
    many requests wait for it.
    """

    def __init__(
        self,
        token_url: str,
        client_id: str,
        client_secret: str,
        scope: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = (5.0, 30.0),
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`timeout` is (connect, read) in seconds."""
        self._token_url = token_url
        self._form = {
            "grant_type": "client_credentials",
            "client_id": client_id,
            "client_secret": client_secret,
        }
        if scope:
            self._form["scope"] = scope
        self._headers = dict(headers or {})
        self._timeout = httpx2.Timeout(timeout[1], connect=timeout[0])
        self._transport = transport
        self._lock = Lock()
        self._token = ""
        self._renew_at = 0.0

    async def get_token(self) -> str:
        """A token that is valid for a while yet. Raises Unauthenticated, ConnectFailed, UnexpectedAnswer."""
        async with self._lock:
            if not self._token or time.monotonic() >= self._renew_at:
                await self._fetch()
            return self._token

    async def _fetch(self) -> None:
        what = f"get a token from {self._token_url}"
        try:
            async with httpx2.AsyncClient(transport=self._transport, timeout=self._timeout) as client:
                response = await client.post(self._token_url, data=self._form, headers=self._headers)
        except (httpx2.RequestError, httpx2.InvalidURL) as exc:
            raise ConnectFailed(f"{what}: {exc or type(exc).__name__}") from exc
        if response.status_code in (400, 401, 403):
            # RFC 6749 §5.2 answers 400 or 401 for credentials it does not accept.
            raise Unauthenticated(
                f"{what}: refused (HTTP {response.status_code}); check client id and secret"
            )
        if not response.is_success:
            raise error_of(response.status_code, response.headers, response.content, what=what)
        answer = object_of(response.content, what)
        token, lifetime = answer.get("access_token"), answer.get("expires_in", 3600)
        if not isinstance(token, str) or not token:
            raise UnexpectedAnswer(f"{what}: the answer has no access_token")
        try:
            lifetime_s = float(lifetime)
        except (TypeError, ValueError):
            raise UnexpectedAnswer(f"{what}: expires_in is no number") from None
        self._token = token
        self._renew_at = time.monotonic() + max(lifetime_s - _EARLY_S, lifetime_s / 2)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._token_url!r})"
