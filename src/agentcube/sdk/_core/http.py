"""What both halves ask of the HTTP client: its options, and what its failures mean. No connection is made here."""

from __future__ import annotations

import json
import ssl
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import httpx2

from agentcube.errors import AgentCubeError
from agentcube.sdk._core.config import is_loopback
from agentcube.sdk._core.errors import (
    ConnectFailed,
    ConnectionLost,
    InvalidArgument,
    TimedOut,
    TransferIncomplete,
    UnexpectedAnswer,
    error_of,
)
from agentcube.sdk._core.requests import Request

POOL_TIMEOUT_S = 30.0
CONNECTIONS_MAX = 400  # every process, cell and watch that is followed holds one; a sandbox takes 512
KEEPALIVE_S = 15.0
SENDING = "send_request_headers.started"  # how the HTTP client's trace calls the moment before the first byte
USER_AGENT = "agentcube-python"


def client_options(urls: set[str], *, connect_timeout_s: float, injected: bool) -> dict[str, Any]:
    """Arguments of `httpx2.Client` and `httpx2.AsyncClient`, but for the transport.

    Loopback addresses are never reached through a proxy of the environment. Reading the machine's
    certificate store takes ten times as long as everything else here together, so it is left out when no address
    is https; the bare context put in its place trusts nothing, should TLS be met all the same.
    """
    options: dict[str, Any] = {
        "timeout": httpx2.Timeout(None, connect=connect_timeout_s, pool=POOL_TIMEOUT_S),
        "limits": httpx2.Limits(max_connections=CONNECTIONS_MAX, keepalive_expiry=KEEPALIVE_S),
        "headers": {"user-agent": USER_AGENT},
        "follow_redirects": False,
    }
    if not injected:
        plain = all(urlsplit(url).scheme == "http" for url in urls)
        if plain:
            options["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if all(is_loopback(url) for url in urls):
            options["trust_env"] = False
            if not plain:  # SSL_CERT_FILE counts all the same: certificates of loopback are one's own
                options["verify"] = ssl.create_default_context()
    return options


def request_options(request: Request, *, connect_timeout_s: float, token: str | None) -> dict[str, Any]:
    """Arguments of `build_request`; the body of an upload is left to the caller.

    Names of files that are no UTF-8 are text with lone surrogates, as Python has them: JSON escapes those, and in a URL
    they are the bytes.
    """
    headers = dict(request.headers)
    if token:
        headers["authorization"] = f"Bearer {token}"
    options: dict[str, Any] = {
        "method": request.method,
        "url": request.url,
        "headers": headers,
        "timeout": httpx2.Timeout(request.timeout_s, connect=connect_timeout_s, pool=POOL_TIMEOUT_S),
    }
    if request.params:
        query = urlencode(request.params, quote_via=quote, errors="surrogateescape")
        options["url"] = f"{request.url}?{query}"
    if request.upload is not None:
        headers["content-type"] = request.upload.content_type
        if request.upload.content_length is not None:
            headers["content-length"] = str(request.upload.content_length)
    elif request.content is not None:
        options["content"] = request.content
    elif request.json is not None:
        headers["content-type"] = "application/json"
        options["content"] = json.dumps(request.json, separators=(",", ":"), allow_nan=False).encode("ascii")
    return options


def failure_of(exc: Exception, request: Request) -> tuple[AgentCubeError, bool]:
    """The exception for the user, and whether the request may have reached the server."""
    what, where = request.what, _origin(request.url)
    if isinstance(exc, httpx2.ConnectTimeout):
        return ConnectFailed(f"{what}: {where} does not answer; is that the right address?"), False
    if isinstance(exc, httpx2.ProxyError):
        return ConnectFailed(f"{what}: the proxy for {where} refused: {exc}"), False
    if isinstance(exc, httpx2.ConnectError):
        return ConnectFailed(f"{what}: cannot connect to {where}: {_why(exc)}"), False
    if isinstance(exc, httpx2.PoolTimeout):
        return TimedOut(f"{what}: all {CONNECTIONS_MAX} connections of this client stayed busy"), False
    if isinstance(exc, httpx2.TimeoutException):
        return TimedOut(f"{what}: {where} said nothing for {request.timeout_s:g} s"), True
    if isinstance(exc, httpx2.NetworkError | httpx2.RemoteProtocolError):
        return ConnectionLost(
            f"{what}: the connection to {where} was lost: {exc or type(exc).__name__}"
        ), True
    if isinstance(exc, httpx2.DecodingError):
        return UnexpectedAnswer(f"{what}: the answer of {where} cannot be decoded: {exc}"), True
    return InvalidArgument(f"{what}: {exc}"), False


def incomplete(exc: Exception, request: Request) -> AgentCubeError:
    """The exception for a body that broke off."""
    if isinstance(exc, httpx2.TimeoutException):
        return failure_of(exc, request)[0]
    return TransferIncomplete(f"{request.what}: the connection was lost before the end")


def answer_error(response: httpx2.Response, request: Request) -> AgentCubeError:
    """The exception for an answer that was not asked for; its body has been read."""
    if response.is_redirect:
        where = response.headers.get("location", "")
        return UnexpectedAnswer(
            f"{request.what}: {_origin(request.url)} redirects to {where!r}: use that address"
        )
    return error_of(response.status_code, response.headers, response.content, what=request.what)


def _why(exc: httpx2.ConnectError) -> str:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"TLS: {cause}"
        cause = cause.__cause__ or cause.__context__
    text = str(exc)
    if "refused" in text or "attempts failed" in text:
        return "connection refused; is `agentcube up` running?"
    return text or "no connection"


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
