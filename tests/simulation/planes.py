"""The product's planes as simulated processes: a manager, a Router, and what each is given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from agentcube.errors import Unauthenticated
from agentcube.manager.manager import Manager
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.sandbox import Endpoint
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.ports.tokens import Subject
from agentcube.router.client import Client
from agentcube.router.engine import Engine
from agentcube.router.settings import RouterSettings
from tests.simulation.driver import SimDriver
from tests.simulation.loop import Process, SimLoop
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.store import SimStore, StoreServer

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class Wall:
    """Everybody's wall clock: virtual time, and what it was set forward or back."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.jumped = timedelta(0)
        self._latest = EPOCH

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self._loop.time()) + self.jumped

    def jump(self, by: timedelta) -> None:
        """Set it forward or back."""
        self._latest = self.latest
        self.jumped += by

    @property
    def latest(self) -> datetime:
        """The latest that it ever was: what is later than that nobody can have taken for over."""
        return max(self._latest, self.now())


class Signer:
    """Tokens that say what they are for; `FakeDriver.bind` reads the session from them."""

    public_keys = ("key",)

    def for_sandbox(self, session: SessionId, sandbox: SandboxId, subject: Subject) -> str:
        return f"{session}.{sandbox}"

    def for_binding(self, session: SessionId, sandbox: SandboxId) -> str:
        return f"session:{session}"

    def for_manager(self, subject: Subject) -> str:
        return subject.name

    def for_link(self, session: SessionId, port: int, key: str, expires_at: datetime) -> str:
        return f"{session}.{port}"


class NoLinks:
    """Nobody shares ports here."""

    def link(self, token: str) -> Any:
        raise Unauthenticated("there are no links")


class Auth:
    """Everybody is who they say."""

    def authenticate(self, authorization: bytes | None) -> Subject:
        if not authorization:
            raise Unauthenticated("who is it?")
        return Subject(authorization.removeprefix(b"Bearer ").decode())


def manager_settings(replica: str, **changes: Any) -> ManagerSettings:
    """The product's settings with times that fit into minutes."""
    values: dict[str, Any] = {
        "replica": replica,
        "start_timeout_s": 10.0,
        "sleep_timeout_s": 4.0,
        "delete_wait_s": 5.0,
        "abandoned_s": 8.0,
        "orphans_s": 5.0,
        "sessions_max": 60,
        "sessions_per_owner_max": 30,
        "refill_backoff_max_s": 5.0,
    }
    return ManagerSettings(**(values | changes))


class ManagerProcess:
    """One life of a manager replica."""

    def __init__(
        self,
        name: str,
        loop: SimLoop,
        store: StoreServer,
        machine: Machine,
        clock: Wall,
        settings: ManagerSettings,
    ) -> None:
        self.process = Process(name)
        with loop.within(self.process):
            self.store: SimStore = store.client(self.process)
            self.driver = SimDriver(machine)
            self.manager = Manager(
                settings, store=self.store, driver=self.driver, signer=Signer(), clock=clock
            )
            self.running: asyncio.Task[None] = loop.create_task(self.manager.run(), name=f"{name}.run")


class Managers:
    """Which managers there are now, and how everybody else calls one of them."""

    def __init__(self, network: Network) -> None:
        self.alive: list[ManagerProcess] = []
        self.network = network

    def some(self) -> ManagerProcess | None:
        """One of them, as a balancer chooses; None when none is up."""
        return self.network.random.choice(self.alive) if self.alive else None


class Control:
    """`ports.control.ControlPlane` over the network, as a Router's process has it."""

    def __init__(self, managers: Managers, process: Process) -> None:
        self._managers = managers
        self._process = process

    async def _call(self, work: Callable[[Any], Any], timeout_s: float, *, repeatable: bool) -> Session:
        found = self._managers.some()
        session: Session = await self._managers.network.call(
            self._process,
            found.process if found else None,
            lambda: work(found.manager.service if found else None),
            timeout_s=timeout_s,
            repeatable=repeatable,
        )
        return session

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        return await self._call(lambda s: s.create_for(template, subject, key=key), 25.0, repeatable=False)

    async def wake(self, id: SessionId) -> Session:
        return await self._call(lambda s: s.wake(id), 15.0, repeatable=True)

    async def suspect(self, id: SessionId) -> Session:
        return await self._call(lambda s: s.suspect(id), 15.0, repeatable=True)


class RouterProcess:
    """One life of a Router: the product's engine and connections, without its sockets."""

    def __init__(self, name: str, loop: SimLoop, store: StoreServer, managers: Managers, clock: Wall) -> None:
        self.process = Process(name)
        settings = RouterSettings(create_timeout_s=30.0, wake_timeout_s=20.0, first_byte_timeout_s=60.0)
        with loop.within(self.process):
            self.store: SimStore = store.client(self.process)
            self.engine = Engine(
                settings,
                store=self.store,
                control=Control(managers, self.process),
                auth=Auth(),
                signer=Signer(),
                manager=Endpoint(scheme="unix", path="/manager"),
                clock=clock,
                checks=(),
                links=NoLinks(),
            )
            self.engine.tokens._now = lambda: clock.now().timestamp()
            loops = {
                "sweep": self.engine.run(),
                "activity": self.engine.activity.run(settings.flush_interval_s),
                "wakes": self.engine.wakes.run(),
            }
            self.loops: list[asyncio.Task[None]] = [
                loop.create_task(work, name=f"{name}.{kind}") for kind, work in loops.items()
            ]

    def accept(self) -> Client:
        """A client's connection."""
        return Client(self.engine)
