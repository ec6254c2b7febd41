"""PicoD as a program: `python -m agentcube.picod`, in images and clusters, where nobody forks it.

The configuration is a JSON object (see `config.Config`) in the file or descriptor that `--config`
names; `listen` there (or `--listen`) says where to serve instead of `listen_fd`.
`PICOD_AUTH_PUBLIC_KEY` holds the public keys unless the configuration does.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from typing import Any

from agentcube.picod.main import run, warm

_DEFAULT_LISTEN = "0.0.0.0:8080"


def read_config(source: str | None) -> dict[str, Any]:
    """The JSON object in a file, or in the open descriptor `fd:N`. Raises OSError or ValueError."""
    if source is None:
        return {}
    with open(int(source[3:]) if source.startswith("fd:") else source, encoding="utf-8") as file:
        data = json.load(file)
    if not isinstance(data, dict):
        raise ValueError("the configuration must be a JSON object")
    return data


def listen(where: str) -> socket.socket:
    """A listening socket at `host:port`, or at the path of a unix socket. Raises OSError or ValueError."""
    if "/" in where:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(where)
    else:
        host, _, port = where.rpartition(":")
        if not port.isdigit():
            raise ValueError(f"cannot listen at {where!r}: give host:port or the path of a socket")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), int(port)))
    listener.listen()
    return listener


def main() -> None:
    """Parse, listen, run."""
    parser = argparse.ArgumentParser(prog="picod", description="The daemon in an AgentCube sandbox.")
    parser.add_argument("--config", help="a JSON file, or fd:N for an open descriptor")
    parser.add_argument(
        "--listen", help=f"host:port or the path of a unix socket (default {_DEFAULT_LISTEN})"
    )
    arguments = parser.parse_args()
    try:
        config = read_config(arguments.config)
        where = arguments.listen or config.pop("listen", None)
        if where or "listen_fd" not in config:
            config["listen_fd"] = listen(where or _DEFAULT_LISTEN).detach()
        config.setdefault("public_keys", [os.environ.pop("PICOD_AUTH_PUBLIC_KEY", "")])
    except (OSError, ValueError) as exc:
        print(f"picod: {exc}", file=sys.stderr)  # noqa: T201  (a program's usage error)
        sys.exit(2)
    warm()
    run(config)


if __name__ == "__main__":
    main()
