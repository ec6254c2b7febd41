"""The token port: who signs for the planes, who is calling, and which keys to trust."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from agentcube.model.ids import SandboxId, SessionId

ISSUER_ROUTER = "agentcube-router"
ISSUER_MANAGER = "agentcube-manager"
AUDIENCE_MANAGER = "agentcube-manager"
AUDIENCE_SHARE = "agentcube-share"
TOKEN_LIFETIME = timedelta(minutes=5)
"""Lifetime of every token we sign but share links' (the contract with PicoD)."""


@dataclass(frozen=True, slots=True)
class Subject:
    """Who is calling. `name` owns what it creates; `admin` may also touch what others own."""

    name: str
    admin: bool = False


LOCAL = Subject("local")
"""The one subject of `--auth none`, and of the local API key."""

ANONYMOUS = Subject("anonymous")
"""Whoever asks for what is public. Owns nothing, and no key is his."""


class Signer(Protocol):
    """Signs RS256 tokens with the deployment's key. Each call costs a private-key operation: cache."""

    @property
    def public_keys(self) -> tuple[str, ...]:
        """PEM blocks that verify what this signer signs."""
        ...

    def for_sandbox(self, session: SessionId, sandbox: SandboxId, subject: Subject) -> str:
        """`iss=agentcube-router aud=<session id> session_id sandbox_id user_sub iat exp`, header `kid`."""
        ...

    def for_binding(self, session: SessionId, sandbox: SandboxId) -> str:
        """`iss=agentcube-manager aud=<sandbox id> session_id sandbox_id iat exp`: binds, once."""
        ...

    def for_manager(self, subject: Subject) -> str:
        """`iss=agentcube-router aud=agentcube-manager sub admin iat exp`: a client's request, vouched for."""
        ...

    def for_link(self, session: SessionId, port: int, key: str, expires_at: datetime) -> str:
        """`iss=agentcube-manager aud=agentcube-share session_id port key iat exp`: a share link's token."""
        ...


@dataclass(frozen=True, slots=True)
class Link:
    """What a share link's token says: `key` is the one of the exposure, times are seconds since the epoch."""

    session: SessionId
    port: int
    key: str
    expires: float


class LinkVerifier(Protocol):
    """Verifies what `Signer.for_link` made, but for its time."""

    def link(self, token: str) -> Link:
        """Raises Unauthenticated. Costs a public-key operation: remember what it says."""
        ...


class Verifier(Protocol):
    """Verifies what `Signer.for_manager` made."""

    def manager_caller(self, token: str) -> Subject:
        """Raises Unauthenticated."""
        ...


class Authenticator(Protocol):
    """Tells who a client is, from the value of its Authorization header."""

    def authenticate(self, authorization: bytes | None) -> Subject:
        """Raises Unauthenticated. Pure CPU, no I/O; constant time in secrets."""
        ...
