"""Identifiers: what they are called and how they are made."""

from __future__ import annotations

import base64
import hashlib
import secrets
from typing import NewType

SessionId = NewType("SessionId", str)
SandboxId = NewType("SandboxId", str)

_SESSION_BYTES = 20  # 160 bits, above the 128 that make guessing hopeless; 32 characters of base32
_SANDBOX_BYTES = 10  # not a secret; 80 bits keep collisions away. Short: it names sockets (108-byte paths)


def _token(size: int) -> str:
    return base64.b32encode(secrets.token_bytes(size)).decode("ascii").lower().rstrip("=")


def new_session_id() -> SessionId:
    """A fresh unguessable session id: 32 lower-case base32 characters, a valid DNS label."""
    return SessionId(_token(_SESSION_BYTES))


def new_sandbox_id() -> SandboxId:
    """A fresh sandbox id: `sb-` and 16 lower-case base32 characters."""
    return SandboxId("sb-" + _token(_SANDBOX_BYTES))


def sandbox_id_for(session: SessionId, attempt: int = 1) -> SandboxId:
    """The id of the sandbox that the `attempt`-th start makes for `session` itself, the same each time it is asked.

    So a start that a crash interrupted can be found and undone without anything more on record, and one
    that goes on after another took its place can do no harm to that. It does not reveal the session's id.
    """
    name = session if attempt == 1 else f"{session} {attempt}"
    digest = hashlib.sha256(b"agentcube sandbox of " + name.encode("utf-8")).digest()
    return SandboxId("sb-" + base64.b32encode(digest[:_SANDBOX_BYTES]).decode("ascii").lower())
