"""The data plane of one machine: a Router in this process, or Router workers beside it."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import structlog

from agentcube.errors import AgentCubeError
from agentcube.manager.manager import Manager
from agentcube.model.sandbox import Endpoint
from agentcube.ports.clock import Clock
from agentcube.ports.store import SessionStore
from agentcube.ports.tokens import Authenticator, LinkVerifier, Signer
from agentcube.router import edge
from agentcube.router.server import Router
from agentcube.router.tls import Certificate
from agentcube.up.environment import router_settings
from agentcube.up.main import UpOptions
from agentcube.up.workers.supervisor import Workers

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Routing:
    """What the composition does with it: `run` it, wait until it is `serving`, `drain` it."""

    run: Callable[[], Awaitable[None]]
    serving: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]]


@contextmanager
def routing(
    options: UpOptions,
    listeners: Sequence[socket.socket],
    *,
    data_dir: Path,
    store: SessionStore,
    clock: Clock,
    manager: Manager,
    auth: Authenticator,
    signer: Signer,
    links: LinkVerifier,
    api_path: Path,
) -> Iterator[Routing]:
    """The data plane on `listeners`. With workers, SIGHUP replaces them one by one while it lasts.

    Raises Invalid for what only the Router can judge: networks, certificates, settings in the environment.
    """
    settings = router_settings(
        os.environ,
        local_only=options.auth == "none",
        ports_domain=options.ports_domain,
        trusted_proxies=options.trust_proxy,
        proxy_protocol=options.proxy_protocol,
    )
    certificate = None
    if options.tls_cert is not None and options.tls_key is not None:
        certificate = Certificate(options.tls_cert, options.tls_key)
    if not options.router_workers:
        router = Router(
            settings,
            store=store,
            control=manager.service,
            auth=auth,
            signer=signer,
            links=links,
            manager=Endpoint(scheme="unix", path=str(api_path)),
            clock=clock,
            checks=[manager.service.check],
            certificate=certificate,
        )
        yield Routing(lambda: router.serve(*listeners), _at_once, router.drain)
        return
    edge.networks(options.trust_proxy)  # here, where it is an error of the command line
    told = {
        "router": asdict(settings),
        "auth": options.auth,
        "data_dir": str(data_dir),
        "manager": str(api_path),
        "tls": [str(options.tls_cert), str(options.tls_key)] if certificate is not None else None,
        "log_level": options.log_level,
    }
    workers = Workers(
        listeners, told, store=store, clock=clock, control=manager.service, check=manager.service.check
    )
    with _replaced_on_hangup(workers):
        yield Routing(workers.run, workers.serving, workers.drain)


async def _at_once() -> None:
    """A Router in this process serves as soon as its loop turns: the socket listens already."""


@contextmanager
def _replaced_on_hangup(workers: Workers) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    replacing: set[asyncio.Task[None]] = set()

    async def replace() -> None:
        try:
            await workers.replace()
        except (AgentCubeError, OSError) as exc:
            log.error("router workers not replaced", reason=str(exc))

    def on_hangup() -> None:
        task = loop.create_task(replace(), name="replace workers")
        replacing.add(task)
        task.add_done_callback(replacing.discard)

    loop.add_signal_handler(signal.SIGHUP, on_hangup)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)
        for task in replacing:
            task.cancel()
