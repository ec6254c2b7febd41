"""`agentcube up`: check what can be checked before anything starts, then run until told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import resource
import socket
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentcube.errors import AgentCubeError, Invalid
from agentcube.runtime import logs
from agentcube.runtime.serve import tcp_socket
from agentcube.up.paths import DataDir

POOL_MAX = 1000
"""Far above what one machine can hold warm; catches a slip of the finger."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """The options of `agentcube up`.

    `port` 0 takes a free one. `data_dir` None is the platform's place for user data. `pool` is the
    warm pool's target of the built-in interpreter. `allow_host_path` are the directories from which
    templates may take images and files. `keep` leaves sandboxes alive when the server stops.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: Path | None = None
    auth: Literal["key", "none"] = "key"
    pool: int = 2
    allow_host_path: tuple[Path, ...] = ()
    keep: bool = False
    log_level: str = "info"


def up(options: UpOptions) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 0 stopped cleanly, 1 failed, 2 could not start.

    Prints `ready http://HOST:PORT` on stdout once it serves; everything else goes to stderr.
    """
    try:
        _check(options)
        with ExitStack() as stack:
            data_dir = DataDir.open(options.data_dir)
            stack.callback(data_dir.close)
            listener = stack.enter_context(_listener(options.host, options.port))
            logs.configure(level=options.log_level)
            _raise_file_limit()
            return _run(options, data_dir, listener)
    except AgentCubeError as exc:
        print(f"error: {exc.detail}", file=sys.stderr)  # noqa: T201
        return 2


def _run(options: UpOptions, data_dir: DataDir, listener: socket.socket) -> int:
    import uvloop

    from agentcube.up.compose import run  # imports every role: only once the options are known to be good

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(options, data_dir, listener))


def _check(options: UpOptions) -> None:
    if sys.platform != "linux":
        raise Invalid(
            "sandboxes need Linux: run `agentcube up` on a Linux machine (or in a Linux VM) and point this one at it "
            "with AGENTCUBE_URL and AGENTCUBE_API_KEY"
        )
    if not 0 <= options.port <= 65535:
        raise Invalid(f"port {options.port} is not between 0 and 65535")
    if not 0 <= options.pool <= POOL_MAX:
        raise Invalid(f"--pool {options.pool} is not between 0 and {POOL_MAX}")
    if options.auth == "none" and not _is_loopback(options.host):
        raise Invalid(f"--auth none is for loopback addresses only, not {options.host}; use --auth key")
    for path in options.allow_host_path:
        if not path.is_dir():
            raise Invalid(f"--allow-host-path {path}: no such directory")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listener(host: str, port: int) -> socket.socket:
    try:
        return tcp_socket(host, port)
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise Invalid(
            f"cannot listen on {host}:{port}: {reason}; choose another with --host and --port"
        ) from exc


def _raise_file_limit() -> None:
    """Thousands of sessions cost a descriptor or two each; the soft limit is often 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
