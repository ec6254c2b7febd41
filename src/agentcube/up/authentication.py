"""Who may call, on one machine: the main process and its workers have it from the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from agentcube.ports.tokens import LOCAL, Authenticator
from agentcube.runtime.access import ApiKeyAuthenticator, OpenAuthenticator, load_or_make_api_key


def authenticator(auth: Literal["key", "none"], data_dir: Path) -> tuple[Authenticator, str | None]:
    """What asks callers who they are, and the key that the user's own clients should use."""
    if auth == "none":
        return OpenAuthenticator(), None
    key = load_or_make_api_key(data_dir / "api-key")
    return ApiKeyAuthenticator({key: LOCAL}), key
