"""Who the client is: the protocol of credential sources, and the one that needs no I/O."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from agentcube.sdk._core.errors import InvalidArgument


@runtime_checkable
class AuthProvider(Protocol):
    """Gives the bearer token of each request. Called before every request: cache what is costly.

    The async clients await what `get_token` returns when it is awaitable.
    """

    def get_token(self) -> str | Awaitable[str]:
        """The token to send as `Authorization: Bearer …`; may raise AgentCubeError."""
        ...


class TokenAuth:
    """A fixed bearer token: an API key, or a token made elsewhere."""

    def __init__(self, token: str) -> None:
        if not token:
            raise InvalidArgument("TokenAuth: the token must not be empty")
        if not token.isascii() or any(c.isspace() or not c.isprintable() for c in token):
            raise InvalidArgument("TokenAuth: the token must be printable ASCII without spaces")
        self._token = token

    def get_token(self) -> str:
        """The token."""
        return self._token

    def __repr__(self) -> str:
        return "TokenAuth(…)"
