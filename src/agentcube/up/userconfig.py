"""The user's config file, by which SDK and CLI find this machine's server without being told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import platformdirs


def path() -> Path:
    """`local.json` in the user's config directory (`XDG_CONFIG_HOME` is honoured)."""
    return Path(platformdirs.user_config_dir("agentcube")) / "local.json"


def write(url: str, api_key: str | None) -> bool:
    """Say where the server is and with which key to call it (mode 0600). False where that cannot be written."""
    file = path()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as out:
            json.dump({"url": url, "api_key": api_key}, out)
        draft.replace(file)
    except OSError:
        return False
    return True


def remove(url: str) -> None:
    """Remove the file if it still names `url`; another server may have written its own since."""
    file = path()
    try:
        if json.loads(file.read_text()).get("url") == url:
            file.unlink()
    except (OSError, ValueError, AttributeError):
        return
