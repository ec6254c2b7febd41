"""Every role in one process: the composition that `agentcube up` runs.

The only place on one machine where stores, drivers and planes are concrete. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import anyio
import structlog
from uvicorn._types import ASGIApplication

from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.environments import DEFAULT, Environments
from agentcube.errors import AgentCubeError, StoreFailed, TemplateNotFound
from agentcube.manager.app import build_app
from agentcube.manager.manager import Manager
from agentcube.model.template import Kind, TemplateKey
from agentcube.runtime.keys import RsaSigner, RsaVerifier, load_or_make_key
from agentcube.runtime.last_resort import LastResort
from agentcube.runtime.serve import AppServer, StopSignal, serve, stop_signals, unix_socket
from agentcube.up import userconfig
from agentcube.up.authentication import authenticator
from agentcube.up.builtin import BUILT_IN_LABEL, my_interpreter
from agentcube.up.environment import manager_settings
from agentcube.up.main import UpOptions, is_loopback
from agentcube.up.paths import DataDir, env_cache_dir, remove_runtime_dir, runtime_dir
from agentcube.up.routing import Routing, routing
from agentcube.up.stores import OpenedStore, open_store
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE, PORTS_DOMAIN

log = structlog.get_logger(__name__)

DRAIN_S = 24.0
"""For requests under way: the Router gives them 20 s, and 2 to connections after that."""

CLEAR_S = 28.0
"""For destroying every sandbox: 200 of them take 6 s on two cores."""

STOP_S = 57.0
"""From the signal to the end, by force if need be; `down` waits for 60 s."""


async def run(options: UpOptions, data_dir: DataDir, listeners: list[socket.socket]) -> int:
    """Serve on `listeners` (each a worker's, where there are workers) until told to stop; the exit code.

    Raises AgentCubeError when it cannot start; whatever was acquired is released by then.
    """
    host, port = listeners[0].getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(stop_signals(LastResort(STOP_S).arm))
        signer = RsaSigner(load_or_make_key(data_dir.path / "keys"))
        auth, api_key = authenticator(options.auth, data_dir.path)
        _warn(options)
        opened = await stack.enter_async_context(open_store(options.store, data_dir.path))
        store, clock = opened.store, opened.clock
        sockets = runtime_dir(data_dir.path)
        stack.callback(remove_runtime_dir, sockets)
        await _environment(stop)
        if stop.event.is_set():
            return 0
        driver = await stack.enter_async_context(
            LocalDriver(
                data_dir=data_dir.path,
                runtime_dir=sockets,
                env_cache=env_cache_dir(),
                host_paths=options.allow_host_path,
            )
        )
        settings = manager_settings(
            os.environ,
            public_address=address,
            ports_domain=options.ports_domain,
            allow_host_paths=tuple(p.resolve() for p in options.allow_host_path),
            host_started_at=_boot_time(),
        )
        manager = Manager(settings, store=store, driver=driver, signer=signer, clock=clock)
        api_path = sockets / "manager.sock"
        stack.callback(api_path.unlink, missing_ok=True)
        verifier = RsaVerifier(signer.public_keys)
        app = build_app(manager.service, verifier, settings)
        api = AppServer(cast(ASGIApplication, app), unix_socket(api_path), drain_s=DRAIN_S)
        data_plane = stack.enter_context(
            routing(
                options,
                listeners,
                data_dir=data_dir.path,
                store=store,
                clock=clock,
                manager=manager,
                auth=auth,
                signer=signer,
                links=verifier,
                api_path=api_path,
            )
        )
        url = f"{'http' if options.tls_cert is None else 'https'}://{address}"
        stack.callback(userconfig.remove, url)
        server = _Server(
            options=options,
            data_dir=data_dir,
            url=url,
            api_key=api_key,
            store=opened,
            manager=manager,
            api=api,
            data_plane=data_plane,
        )
        await server.run(stop)
    return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """The parts together: how they begin and end."""

    options: UpOptions
    data_dir: DataDir
    url: str
    api_key: str | None
    store: OpenedStore
    manager: Manager
    api: AppServer
    data_plane: Routing

    async def run(self, stop: StopSignal) -> None:
        """Serve until `stop`."""
        await serve(
            {"router": self.data_plane.run, "manager": self.manager.run, "api": self.api.run},
            stop=stop,
            started=self._started,
            drain=self._drain,
            drain_s=DRAIN_S,
            clear=self._clear,
            clear_s=CLEAR_S,
        )

    async def _started(self) -> None:
        await self.api.listening()
        await self.manager.recovered()
        await self.data_plane.serving()
        await _put_built_in(self.manager, self.options.pool)
        self.data_dir.announce(self.url)
        gc.collect()
        gc.freeze()  # what is here now stays: collections need not look at it again
        if not userconfig.write(self.url, self.api_key):
            log.warning("user config not written; clients need AGENTCUBE_URL", path=str(userconfig.path()))
        sys.stdout.write(f"ready {self.url}\n")
        sys.stdout.flush()

    async def _drain(self) -> None:
        self.manager.refuse()
        await self.data_plane.drain()

    async def _clear(self) -> None:
        if not self.options.keep:
            try:
                await self.manager.clear()
                await self.store.let_go()
            except StoreFailed as exc:
                log.error("sessions not ended: the next start goes on with them", reason=exc.detail)
        self.api.stop()


def _warn(options: UpOptions) -> None:
    """Say what an operator may not have meant."""
    if options.auth == "none":
        log.warning("NO AUTHENTICATION: everybody on this machine may use and end every session", auth="none")
    if options.ports_domain == PORTS_DOMAIN and not is_loopback(options.host):
        log.info("links to ports of sessions work on this machine only: see --ports-domain")


async def _environment(stop: StopSignal) -> None:
    """Build the default Python environment if this user has none yet; without it, say so and go on.

    Told to stop, it gives the build up.

    Templates with another environment or image work all the same; `my-interpreter` then fails with
    this reason.
    """

    def progress(line: str) -> None:
        log.info("preparing the default python environment", step=line)

    environments = Environments(env_cache_dir())
    building = asyncio.ensure_future(anyio.to_thread.run_sync(environments.ensure, DEFAULT, progress))
    stopping = asyncio.ensure_future(stop.event.wait())
    try:
        await asyncio.wait({building, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.event.is_set():
            environments.give_up()
        await building
    except AgentCubeError as exc:
        if stop.event.is_set():
            return
        log.error("no default python environment: sessions that need it will fail", reason=exc.detail)
    finally:
        stopping.cancel()


async def _put_built_in(manager: Manager, pool: int) -> None:
    key = TemplateKey(Kind.CODE_INTERPRETER, BUILT_IN_NAMESPACE, BUILT_IN_INTERPRETER)
    try:
        known = await manager.service.catalog.get(key)
    except TemplateNotFound:
        known = None
    if known is None or BUILT_IN_LABEL in known.manifest.get("metadata", {}).get("labels", {}):
        await manager.service.catalog.put(key, my_interpreter(pool))


def _boot_time() -> datetime | None:
    """When this machine started (`btime` of /proc/stat, seconds since the epoch)."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        return datetime.fromtimestamp(next(int(x.split()[1]) for x in lines if x.startswith("btime ")), UTC)
    except (OSError, StopIteration, ValueError):
        return None
