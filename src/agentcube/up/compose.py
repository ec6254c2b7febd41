"""Every role in one process: the composition that `agentcube up` runs.

The only place on one machine where stores, drivers and planes are concrete. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import anyio
import structlog
from uvicorn._types import ASGIApplication

from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.environments import DEFAULT, Environments
from agentcube.errors import AgentCubeError, TemplateNotFound
from agentcube.manager.app import build_app
from agentcube.manager.manager import Manager
from agentcube.manager.settings import ManagerSettings
from agentcube.model.sandbox import Endpoint
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.tokens import LOCAL, Authenticator
from agentcube.router.server import Router
from agentcube.router.settings import RouterSettings
from agentcube.runtime.access import ApiKeyAuthenticator, OpenAuthenticator, load_or_make_api_key
from agentcube.runtime.keys import RsaSigner, RsaVerifier, load_or_make_key
from agentcube.runtime.last_resort import LastResort
from agentcube.runtime.serve import AppServer, StopSignal, serve, stop_signals, unix_socket
from agentcube.stores.sqlite import SqliteStore
from agentcube.up import userconfig
from agentcube.up.builtin import BUILT_IN_LABEL, my_interpreter
from agentcube.up.main import UpOptions
from agentcube.up.paths import DataDir, env_cache_dir, remove_runtime_dir, runtime_dir
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE

log = structlog.get_logger(__name__)

DRAIN_S = 24.0
"""For requests under way: the Router gives them 20 s, and 2 to connections after that."""

CLEAR_S = 28.0
"""For destroying every sandbox: 200 of them take 6 s on two cores."""

STOP_S = 57.0
"""From the signal to the end, by force if need be; `down` waits for 60 s."""


async def run(options: UpOptions, data_dir: DataDir, listener: socket.socket) -> int:
    """Serve on `listener` until told to stop; the exit code.

    Raises AgentCubeError when it cannot start; whatever was acquired is released by then.
    """
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    async with AsyncExitStack() as stack:
        stop = await stack.enter_async_context(stop_signals(LastResort(STOP_S).arm))
        signer = RsaSigner(load_or_make_key(data_dir.path / "keys"))
        auth, api_key = _access(options, data_dir.path)
        store = await stack.enter_async_context(SqliteStore.open(data_dir.path / "store.sqlite3"))
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
        settings = ManagerSettings(
            public_address=address,
            allow_host_paths=tuple(p.resolve() for p in options.allow_host_path),
            host_started_at=_boot_time(),
        )
        manager = Manager(settings, store=store, driver=driver, signer=signer)
        api_path = sockets / "manager.sock"
        stack.callback(api_path.unlink, missing_ok=True)
        app = build_app(manager.service, RsaVerifier(signer.public_keys), settings)
        api = AppServer(cast(ASGIApplication, app), unix_socket(api_path), drain_s=DRAIN_S)
        router = Router(
            RouterSettings(local_only=options.auth == "none"),
            store=store,
            control=manager.service,
            auth=auth,
            signer=signer,
            manager=Endpoint(scheme="unix", path=str(api_path)),
            checks=[manager.service.check],
        )
        url = f"http://{address}"
        stack.callback(userconfig.remove, url)

        async def started() -> None:
            await api.listening()
            await manager.recovered()
            await _put_built_in(manager, options.pool)
            data_dir.announce(url)
            gc.collect()
            gc.freeze()  # what is here now stays: collections need not look at it again
            if not userconfig.write(url, api_key):
                log.warning(
                    "user config not written; clients need AGENTCUBE_URL", path=str(userconfig.path())
                )
            sys.stdout.write(f"ready {url}\n")
            sys.stdout.flush()

        async def drain() -> None:
            manager.refuse()
            await router.drain()

        async def clear() -> None:
            if not options.keep:
                await manager.clear()
            api.stop()

        loops = {"router": lambda: router.serve(listener), "manager": manager.run, "api": api.run}
        await serve(
            loops, stop=stop, started=started, drain=drain, drain_s=DRAIN_S, clear=clear, clear_s=CLEAR_S
        )
    return 0


def _access(options: UpOptions, path: Path) -> tuple[Authenticator, str | None]:
    """Who may call, and the key that the user's own clients should use."""
    if options.auth == "none":
        log.warning("NO AUTHENTICATION: everybody on this machine may use and end every session", auth="none")
        return OpenAuthenticator(), None
    key = load_or_make_api_key(path / "api-key")
    return ApiKeyAuthenticator({key: LOCAL}), key


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
