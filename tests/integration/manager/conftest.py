"""A whole manager on fakes: memory store, fake driver, real uvicorn on a unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from fastapi import FastAPI
from fastapi.routing import APIRoute

from agentcube.drivers.fake import FakeDriver, FakeMachine
from agentcube.manager.app import build_app
from agentcube.manager.manager import Manager
from agentcube.manager.settings import ManagerSettings
from agentcube.model.session import Session
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.clock import Clock, SystemClock
from agentcube.ports.tokens import LOCAL, Subject
from agentcube.runtime.keys import RsaSigner, RsaVerifier
from agentcube.runtime.serve import AppServer, unix_socket
from agentcube.stores.memory import MemoryStore
from agentcube.testing.clock import FakeClock
from agentcube.testing.eventually import eventually


@pytest.fixture(scope="session")
def key() -> RSAPrivateKey:
    return generate_private_key(public_exponent=65537, key_size=2048)


class World:
    """What outlives a manager: store, machine, clock. `manager()` starts one on them."""

    INTERPRETER = TemplateKey(Kind.CODE_INTERPRETER, "default", "my-interpreter")
    AGENT = TemplateKey(Kind.AGENT_RUNTIME, "default", "echo")
    EVE = Subject("eve")
    ADMIN = Subject("root", admin=True)

    @staticmethod
    def interpreter(pool: int = 0, **spec: Any) -> dict[str, Any]:
        """A CodeInterpreter's manifest."""
        return {"kind": "CodeInterpreter", "spec": {"template": {}, "warmPoolSize": pool, **spec}}

    @staticmethod
    def agent(command: tuple[str, ...] = ("serve",), **spec: Any) -> dict[str, Any]:
        """An AgentRuntime's manifest."""
        container = {"name": "a", "image": "host", "command": list(command)}
        return {
            "kind": "AgentRuntime",
            "spec": {
                "targetPort": [{"pathPrefix": "/echo", "port": 8080, "protocol": "HTTP"}],
                "podTemplate": {"spec": {"containers": [container]}},
                **spec,
            },
        }

    def __init__(self, key: RSAPrivateKey) -> None:
        self.store = MemoryStore()
        self.machine = FakeMachine()
        self.driver = FakeDriver(self.machine)
        self.clock: Clock = SystemClock()
        self.tick: FakeClock  # the clock, where a test advances it
        self.signer = RsaSigner(key)
        self.verifier = RsaVerifier(self.signer.public_keys)
        self.settings: dict[str, Any] = {"observe_s": 0.05}

    def new_driver(self, **options: Any) -> FakeDriver:
        """What a restarted process has: a driver that knows nothing, on the same machine."""
        self.driver = FakeDriver(self.machine, **options)
        return self.driver

    @contextlib.asynccontextmanager
    async def manager(self, *, recovered: bool = True) -> AsyncIterator[Manager]:
        """A running manager; leaving the context kills it, as a crash would."""
        manager = Manager(
            ManagerSettings(public_address="box.example:8080", **self.settings),
            store=self.store,
            driver=self.driver,
            signer=self.signer,
            clock=self.clock,
        )
        running = asyncio.ensure_future(manager.run())
        try:
            if recovered:
                async with asyncio.timeout(10):
                    await manager.recovered()
            yield manager
        finally:
            running.cancel()
            await asyncio.wait({running})
            if not running.cancelled() and (error := running.exception()) is not None:
                raise error

    @contextlib.asynccontextmanager
    async def serving(self, manager: Manager) -> AsyncIterator[Callable[..., httpx2.AsyncClient]]:
        """The manager's API on a unix socket; yields a maker of clients, by subject."""
        settings = ManagerSettings(public_address="box.example:8080", **self.settings)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "m.sock"
            app = build_app(manager.service, self.verifier, settings)
            server = AppServer(app, unix_socket(path), drain_s=1)
            async with contextlib.AsyncExitStack() as stack, asyncio.TaskGroup() as group:
                running = group.create_task(server.run())
                await server.listening()

                def client(subject: Subject | None = LOCAL) -> httpx2.AsyncClient:
                    made = httpx2.AsyncClient(
                        transport=httpx2.AsyncHTTPTransport(uds=str(path)),
                        base_url="http://manager",
                        timeout=20,
                    )
                    if subject is not None:
                        made.headers["authorization"] = f"Bearer {self.signer.for_manager(subject)}"
                    stack.push_async_callback(made.aclose)
                    return made

                try:
                    yield client
                finally:
                    running.cancel()

    async def pool_of(self, manager: Manager, *, ready: int, within: float = 10) -> None:
        """Return when that many sandboxes of `INTERPRETER` are ready in its pool."""

        async def holds() -> bool:
            return [r.ready for r in await manager.service.pools() if r.template.key == self.INTERPRETER] == [
                ready
            ]

        await eventually(holds, within=within)

    @staticmethod
    def routes(app: FastAPI) -> list[APIRoute]:
        """Every route that the application serves, those of included routers too."""
        found, rest = [], list(app.routes)
        while rest:
            route = rest.pop()
            if isinstance(route, APIRoute):
                found.append(route)
            else:  # FastAPI >= 0.140 keeps included routers whole
                rest.extend(route.original_router.routes)
        return found

    async def session(self, manager: Manager, subject: Subject = LOCAL) -> Session:
        """A session of `INTERPRETER`, which must exist."""
        return await manager.service.create_for(self.INTERPRETER, subject)


@pytest.fixture
def world(key: RSAPrivateKey) -> World:
    return World(key)


@pytest.fixture
async def api(world: World, anyio_backend: str) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a served manager that has the template `INTERPRETER` without a pool."""
    async with world.manager() as manager, world.serving(manager) as client:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        yield client()


@pytest.fixture
async def timed(world: World, anyio_backend: str) -> AsyncIterator[Manager]:
    """A running manager on a fake clock (`world.tick`), with `INTERPRETER` and without its own looks in the way."""
    world.clock = world.tick = FakeClock()
    world.settings["observe_s"] = 30
    async with world.manager() as manager:
        await manager.service.catalog.put(world.INTERPRETER, world.interpreter())
        yield manager
