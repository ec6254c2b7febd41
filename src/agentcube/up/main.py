"""`agentcube up`: check what can be checked before anything starts, then run until told to stop."""

from __future__ import annotations

import asyncio
import ipaddress
import re
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
from agentcube.wire.names import PORTS_DOMAIN

POOL_MAX = 1000
"""Far above what one machine can hold warm; catches a slip of the finger."""

_DOMAIN = re.compile(
    r"(?=.{1,180}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"
).fullmatch

WORKERS_MAX = 256
"""The same for processes; one for each core is what helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpOptions:
    """The options of `agentcube up`.

    `port` 0 takes a free one. `data_dir` None is the platform's place for user data. `pool` is the
    warm pool's target of the built-in interpreter. `allow_host_path` are the directories from which
    templates may take images and files. `store` is `sqlite` or the URL of a Redis or Valkey server. `keep`
    leaves sandboxes alive when the server stops. `tls_cert` and `tls_key` are PEM files, both or none.
    `trust_proxy` are addresses or networks of proxies whose word on who the client is counts; with
    `proxy_protocol` they begin every connection with a PROXY header. `router_workers` 0 serves clients in
    the main process, more in as many processes of their own. Below `ports_domain` each exposed port has a host
    name of its own; "": none has.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    data_dir: Path | None = None
    auth: Literal["key", "none"] = "key"
    pool: int = 2
    allow_host_path: tuple[Path, ...] = ()
    store: str = "sqlite"
    keep: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    trust_proxy: tuple[str, ...] = ()
    proxy_protocol: bool = False
    router_workers: int = 0
    ports_domain: str = PORTS_DOMAIN
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
            listeners = [
                stack.enter_context(listener)
                for listener in _listeners(options.host, options.port, options.router_workers)
            ]
            logs.configure(level=options.log_level)
            _raise_file_limit()
            return _run(options, data_dir, listeners)
    except AgentCubeError as exc:
        print(f"error: {exc.detail}", file=sys.stderr)  # noqa: T201
        return 2


def _run(options: UpOptions, data_dir: DataDir, listeners: list[socket.socket]) -> int:
    import uvloop

    from agentcube.up.compose import run  # imports every role: only once the options are known to be good

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run(options, data_dir, listeners))


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
    if not 0 <= options.router_workers <= WORKERS_MAX:
        raise Invalid(f"--router-workers {options.router_workers} is not between 0 and {WORKERS_MAX}")
    if options.ports_domain and not _DOMAIN(options.ports_domain):
        raise Invalid(
            f"--ports-domain {options.ports_domain!r} is no domain name in lower case, without a port; '' for none"
        )
    if options.auth == "none" and not is_loopback(options.host):
        raise Invalid(f"--auth none is for loopback addresses only, not {options.host}; use --auth key")
    if (options.tls_cert is None) != (options.tls_key is None):
        raise Invalid("--tls-cert and --tls-key go together")
    if options.proxy_protocol and not options.trust_proxy:
        raise Invalid(
            "--proxy-protocol needs --trust-proxy: the header of anybody else would be anybody's word"
        )
    if options.proxy_protocol and options.tls_cert is not None:
        raise Invalid("--proxy-protocol and --tls-cert exclude each other: let the proxy speak TLS")
    for path in options.allow_host_path:
        if not path.is_dir():
            raise Invalid(f"--allow-host-path {path}: no such directory")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listeners(host: str, port: int, workers: int) -> list[socket.socket]:
    """One socket; or one for each worker, on the same port, among which the kernel spreads connections."""
    try:
        first = tcp_socket(host, port)
        if not workers:
            return [first]
        # Sharing a port also works with somebody who shares it already: the first was alone, so it was free.
        port = first.getsockname()[1]
        first.close()
        return [tcp_socket(host, port, shared=True) for _ in range(workers)]
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
