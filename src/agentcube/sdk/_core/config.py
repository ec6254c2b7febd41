"""Where the servers are and with which key to call them.

Order: explicit arguments, then AGENTCUBE_URL and AGENTCUBE_API_KEY, then ROUTER_URL and
WORKLOAD_MANAGER_URL (the Go system's names), then the user's config file that `agentcube up` writes.
Read when a client is made, never at import. A key found in the config file goes only to the address
that stands beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from agentcube.sdk._core.auth import AuthProvider, TokenAuth
from agentcube.sdk._core.errors import InvalidArgument, NotConfigured

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")

NO_SERVER = (
    "no AgentCube server is known: start one with `agentcube up`, "
    "or set AGENTCUBE_URL (and AGENTCUBE_API_KEY), or pass {argument}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Base URLs without a trailing slash, which may be the same, and who to be there."""

    router_url: str
    manager_url: str
    auth: AuthProvider | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """What `agentcube up` wrote for this user."""

    url: str
    api_key: str | None = None


def local_config_path() -> Path:
    """`local.json` in the user's config directory."""
    import platformdirs  # here, because only a client that was told nothing needs it

    return Path(platformdirs.user_config_dir("agentcube")) / "local.json"


def read_local() -> Local | None:
    """The user's running server, as its file says; None without a file that can be read and understood."""
    try:
        said = json.loads(local_config_path().read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(said, dict) or not isinstance(said.get("url"), str):
        return None
    key = said.get("api_key")
    return Local(url=said["url"], api_key=key if isinstance(key, str) and key else None)


def resolve(
    *,
    url: str | None = None,
    router_url: str | None = None,
    manager_url: str | None = None,
    token: str | None = None,
    auth: AuthProvider | None = None,
    argument: str = "url",
    env: Mapping[str, str] | None = None,
) -> Servers:
    """The servers a client shall use.

    One address is enough, because the Router also serves the management API: whichever of the two is
    not given anywhere is taken to be the other. `argument` is the parameter to name in the error.

    Raises:
        NotConfigured: no address was given, set or found; the text says what to do.
        InvalidArgument: an address is no http or https URL.
    """
    env = os.environ if env is None else env
    token = token or env.get("AGENTCUBE_API_KEY")
    router, manager = _addresses(router_url or url, manager_url or url, env)
    found = router or manager
    local = None if found and (auth or token) else read_local()
    if not found:
        if local is None:
            raise NotConfigured(NO_SERVER.format(argument=argument))
        found = local.url
    router, manager = _base(router or found), _base(manager or found)
    return Servers(
        router_url=router,
        manager_url=manager,
        auth=auth or _credentials(token, local, {router, manager}),
    )


def _addresses(
    router: str | None, manager: str | None, env: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The two addresses as given or set. One that is given is not mixed with an AGENTCUBE_URL from outside."""
    both = None if router or manager else env.get("AGENTCUBE_URL")
    return (
        router or both or env.get("ROUTER_URL") or None,
        manager or both or env.get("WORKLOAD_MANAGER_URL") or None,
    )


def _credentials(token: str | None, local: Local | None, bases: set[str]) -> AuthProvider | None:
    if token:
        return TokenAuth(token)
    if local is not None and bases == {local.url.rstrip("/")}:
        return TokenAuth(local.api_key) if local.api_key else None
    try:
        # In a pod, as the Go system's SDK does: the service account's own token.
        mounted = SERVICE_ACCOUNT_TOKEN.read_text("utf-8").strip()
    except OSError:
        return None
    return TokenAuth(mounted) if mounted else None


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise InvalidArgument(f"{url!r} is no server address: write it like http://127.0.0.1:8080")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether the address is this machine: never to be reached through a proxy."""
    host = (urlsplit(url).hostname or "").lower()
    return host in ("localhost", "::1") or host.startswith("127.")
