"""One simulated run: a store, a machine, managers, Routers, clients and what befalls them, all from one seed."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import Any

import structlog

from agentcube.model import ids
from agentcube.model.template import Kind, TemplateKey
from tests.simulation.clients import Client
from tests.simulation.errors import Rule, Violation
from tests.simulation.faults import Faults
from tests.simulation.invariants import Checker
from tests.simulation.leaks import leaks
from tests.simulation.loop import SimLoop
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.planes import ManagerProcess, Managers, RouterProcess, Wall, manager_settings
from tests.simulation.store import StoreServer

SETTLE_S = 30.0
"""From the last fault until everything must work, and whatever was due be done."""
OVERDUE = timedelta(seconds=25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How large a run is. Times are virtual seconds."""

    managers: int = 0  # as the seed says: one to three
    faults: tuple[str, ...] | None = None  # kinds; as the seed says
    routers: int = 2
    clients: int = 10
    faulty_s: float = 60.0
    calm_s: float = 20.0
    heeds_logs: bool = True
    """Whether an exception in the product's log ends it; without, the invariants have to notice."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a run was. `wrong` is None when nothing was."""

    seed: int
    events: int
    virtual_s: float
    digest: int
    done: int
    faults: str
    wrong: str | None
    broken: Rule | None
    trace: tuple[str, ...] = ()


class World:
    """Everything there is."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.plan = plan
        size = Random(f"{seed}/size")
        self.replicas = plan.managers or size.choice((1, 2, 2, 3))
        self.loop = SimLoop()
        self.clock = Wall(self.loop)
        self.network = Network(self.loop, Random(f"{seed}/network"))
        self.store = StoreServer(self.loop, Random(f"{seed}/store"))
        self.store.delay_s = self.store.usual_delay_s = size.choice((0.0003, 0.0003, 0.003, 0.02))
        self.store.late, self.store.late_s = size.choice(((0.0, 0.0), (0.05, 0.02), (0.2, 0.05)))
        self.tables = self.store.tables
        self.machine = Machine(self.loop, self.network, Random(f"{seed}/machine"))
        self.machine.pace = size.choice((1.0, 1.0, 8.0, 40.0))
        self.machine.late_s = size.choice((0.05, 0.5, 4.0, 12.0))
        self.managers = Managers(self.network)
        self.routers: list[RouterProcess] = []
        self.checker = Checker(self.loop, self.tables, self.machine, self.clock)
        self.faults = Faults(self, Random(f"{seed}/faults"), plan.faults)
        self.checker.sole = self.replicas == 1
        self.checker.troubled = lambda: bool(self.faults.under_way)
        self.clients = [Client(self, f"c{n}", Random(f"{seed}/c{n}")) for n in range(plan.clients)]
        self.templates = ["warm", "cold"]
        self.keys = {n: TemplateKey(Kind.CODE_INTERPRETER, "default", n) for n in self.templates}
        self.closing = False
        self.strict = False
        self._lives = 0
        self._ids = Random(f"{seed}/ids")
        self.loop.connect = self.machine.connect
        self.loop.on_crash = self.faults.crashed

    # What is there

    def start_manager(self, replica: int) -> None:
        """Another life of that replica."""
        self._lives += 1
        name = f"m{replica}.{self._lives}"
        settings = manager_settings(name, replicated=self.replicas > 1)
        one = ManagerProcess(name, self.loop, self.store, self.machine, self.clock, settings)
        one.running.add_done_callback(lambda task: self._manager_ended(one, task))
        self.managers.alive.append(one)

    def _manager_ended(self, one: ManagerProcess, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            self.loop.complain(f"{one.process} ended: {task.exception()!r}")

    def start_router(self, number: int) -> None:
        """Another life of that Router."""
        self._lives += 1
        name = f"r{number}.{self._lives}"
        self.routers.append(RouterProcess(name, self.loop, self.store, self.managers, self.clock))

    # What happens

    async def run(self) -> None:
        """All of it. Raises Violation."""
        for replica in range(self.replicas):
            self.start_manager(replica)
        for number in range(self.plan.routers):
            self.start_router(number)
        while not all(one.manager.service._admission.is_open for one in self.managers.alive):
            await asyncio.sleep(0.01)
        await self._put_templates()
        watch = self.loop.create_task(self._watch())
        clients = [self.loop.create_task(client.run()) for client in self.clients]
        await self.faults.run(self.plan.faulty_s)
        self.checker.disturb()
        await asyncio.sleep(SETTLE_S)
        self.strict = True
        await asyncio.sleep(self.plan.calm_s)
        self.closing = True
        await asyncio.wait(clients)
        self._look(clients)
        await self._until_empty()
        watch.cancel()

    async def _put_templates(self) -> None:
        warm = {"sessionTimeout": "12s", "maxSessionDuration": "60s", "suspendAfter": "3s", "warmPoolSize": 3}
        cold = {"sessionTimeout": "20s", "maxSessionDuration": "50s"}
        for name, spec in (("warm", warm), ("cold", cold)):
            document = {"kind": "CodeInterpreter", "spec": {"template": {}, **spec}}
            await self._managed(lambda m, n=name, d=document: m.service.catalog.put(self.keys[n], d))

    async def _managed(self, work: Any) -> Any:
        one = self.managers.alive[0]
        return await self.network.call(self.loop.world, one.process, lambda: work(one.manager))

    async def _watch(self) -> None:
        """Once a second: what should have happened has, if nothing was wrong for long enough."""
        while True:
            await asyncio.sleep(1.0)
            if self.loop.time() - self.checker.disturbed_at > SETTLE_S:
                self.checker.overdue(OVERDUE)

    async def _until_empty(self) -> None:
        """Nobody uses anything any more: every session must end, then every sandbox."""
        for _ in range(150):
            await asyncio.sleep(1.0)
            if not self.tables.records.sessions:
                break
        for key in self.keys.values():
            await self._managed(lambda m, k=key: m.service.catalog.delete(k))
        for _ in range(60):
            await asyncio.sleep(1.0)
            if not leaks(self):
                return
        raise self.checker.wrong(Rule.LEFT, f"left behind: {'; '.join(leaks(self))}")

    def _look(self, tasks: Any) -> None:
        for task in tasks:
            if not task.cancelled() and task.exception() is not None:
                raise task.exception()


def simulate(seed: int, plan: Plan | None = None, *, trace: bool = False) -> Report:
    """One run. What is wrong, the report says; only a fault of the simulation itself is raised."""
    gc.collect()
    gc.disable()  # finalizers run when the last reference goes, which is the same in every run
    wrong: str | None = None
    world = World(seed, plan or Plan())
    if trace:
        world.checker.trace = []
    try:
        with _seeded_ids(world._ids), _logs(world):
            try:
                world.loop.run_until_complete(world.run())
            except (Violation, asyncio.InvalidStateError) as ended:
                wrong = str(ended)
            wrong = world.checker.found or next(iter(world.loop.problems), wrong)
    finally:
        world.loop.close()
        gc.enable()
    return Report(
        seed,
        world.loop.events,
        world.loop.time(),
        world.loop.digest,
        sum(client.done for client in world.clients),
        f"{world.replicas} managers, {world.faults.told()}",
        wrong,
        world.checker.broken or (Rule.SOUND if wrong else None),
        tuple(world.checker.trace or ()),
    )


@contextmanager
def _seeded_ids(random: Random) -> Iterator[None]:
    """Ids that the seed decides; the product takes them from the system's randomness."""

    def token(size: int) -> str:
        return base64.b32encode(random.randbytes(size)).decode("ascii").lower().rstrip("=")

    original, ids._token = ids._token, token  # type: ignore[assignment]
    try:
        yield
    finally:
        ids._token = original


@contextmanager
def _logs(world: World) -> Iterator[None]:
    """The product's log goes to the trace; an exception in it is a bug that somebody caught."""

    def sink(logger: Any, method: str, event: dict[str, Any]) -> str:
        world.checker.note(f"{method}: " + " ".join(f"{k}={v}" for k, v in event.items()))
        if world.plan.heeds_logs and (event.get("exc_info") or event.get("event") in _BUGS):
            world.loop.complain(str(event))
        raise structlog.DropEvent

    level = 20 if world.checker.trace is not None else 40
    before = structlog.get_config()
    structlog.configure(
        processors=[sink],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**before)


_BUGS = frozenset({"session does not come to rest", "router task failed", "request failed inside the router"})
