"""The world of `benchmarks.scale`: managers, Routers and a store in the simulator, their sessions and their load."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from datetime import datetime, timedelta
from random import Random
from typing import Any

from tests.simulation.clients import Answer, HttpCall
from tests.simulation.loop import Process, SimLoop
from tests.simulation.machine import Machine
from tests.simulation.network import Network
from tests.simulation.planes import (
    EPOCH,
    ManagerProcess,
    Managers,
    RouterProcess,
    Wall,
    manager_settings,
)
from tests.simulation.store import StoreServer

from agentcube.drivers.fake import _Box
from agentcube.errors import AgentCubeError
from agentcube.model.ids import SandboxId, SessionId, new_session_id
from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Endpoint, Isolation, Sandbox, SandboxSpec
from agentcube.model.session import PhaseChange, Session
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.tokens import Subject

KEY = TemplateKey(Kind.CODE_INTERPRETER, "default", "box")
IDLE = timedelta(minutes=15)
MANAGERS = ROUTERS = 4
PREMADE = "sb-premade-"


class AccountingLoop(SimLoop):
    """Knows how much processor time each process took."""

    def __init__(self) -> None:
        super().__init__()
        self.spent_ns: Counter[Process] = Counter()

    def _run(self) -> None:
        ready, spent, clock = self._ready, self.spent_ns, time.thread_time_ns
        while not self._stopping:
            if not ready:
                self._due()
            handle = ready.popleft()
            if not handle.live:
                continue
            self.current = process = handle.process
            began = clock()
            handle.context.run(handle.callback, *handle.args)
            spent[process] += clock() - began


class Premade(dict[SandboxId, Any]):
    """Boxes of which a million exist from the beginning without taking memory, until they are destroyed."""

    def __init__(self) -> None:
        super().__init__()
        self._one = _Box(SandboxSpec(id=SandboxId(PREMADE)), whole=True)
        self._gone: set[SandboxId] = set()

    def get(self, id: SandboxId, default: Any = None) -> Any:
        found = super().get(id)
        return self._one if found is None and id.startswith(PREMADE) and id not in self._gone else found

    def __getitem__(self, id: SandboxId) -> Any:
        return self.get(id)

    def pop(self, id: SandboxId, default: Any = None) -> Any:
        if id.startswith(PREMADE):
            self._gone.add(id)
        return super().pop(id, default)


def premade(number: int, random: Random, now: datetime = EPOCH) -> Session:
    """A session that was last used at any time within its idle timeout."""
    used = now - timedelta(seconds=IDLE.total_seconds() * random.random())
    id = new_session_id()
    box = SandboxId(f"{PREMADE}{number}")
    where = f"/nonexistent/agentcube-fake/{box}"
    return Session(
        id=id,
        template=KEY,
        generation=1,
        owner=f"owner-{number % 1000}",
        phase=Phase.READY,
        created_at=used,
        last_activity_at=used,
        expires_at=used + timedelta(hours=8),
        idle_timeout=IDLE,
        sandbox=Sandbox(
            id=box,
            driver="fake",
            handle=f'{{"v": 1, "id": "{box}"}}',
            isolation=Isolation.NAMESPACE,
            picod=Endpoint(scheme="unix", path=f"{where}/picod.sock"),
        ),
        history=(PhaseChange(seq=3, phase=Phase.READY, at=used),),
    ).rearmed()


def gap_s(random: Random) -> float:
    """Between two requests of a session: mostly seconds, now and then minutes (heavy-tailed), mean 21 s."""
    if random.random() < 0.8:
        return random.lognormvariate(0.7, 0.8)
    return min(30.0 * random.paretovariate(1.1), 1200.0)


class ScaleWorld:
    """Managers and Routers without faults, on virtual time, and what they were asked."""

    def __init__(self, managers: int = MANAGERS, routers: int = ROUTERS) -> None:
        self._counts = managers, routers
        self.loop = AccountingLoop()
        self.random = Random(26)
        self.clock = Wall(self.loop)
        self.network = Network(self.loop, Random(1))
        self.store = StoreServer(self.loop, Random(2))
        self.machine = Machine(self.loop, self.network, Random(3))
        self.machine.boxes = Premade()
        self.machine.capacity = 1 << 30
        self.loop.connect = self.machine.connect
        self.managers = Managers(self.network)
        self.routers: list[RouterProcess] = []
        self.ids: list[SessionId] = []
        self.touched = 0
        self.changes = 0
        self.waits: list[float] = []
        self.refused = self.requests = 0
        self.loop.events_max = 1 << 40

    def populate(self, count: int) -> None:
        """Sessions that are there already."""
        tables = self.store.tables
        for number in range(count):
            session = premade(number, self.random, self.clock.now())
            tables._live.sessions[session.id] = session
            tables._live._owners[session.owner] += 1
            tables._deadlines.set(session.id, session.due_at)
            self.ids.append(session.id)
        tables._order._rows = sorted((s.created_at, s.id) for s in tables._live.sessions.values())

    def change_counter(self, change: Any) -> None:
        self.changes += 1

    async def begin(self) -> None:
        """Start managers and Routers."""
        managers, routers = self._counts
        for number in range(managers):
            settings = manager_settings(
                f"m{number}",
                replicated=managers > 1,
                sessions_max=1 << 30,
                sessions_per_owner_max=1 << 30,
                creates_waiting_max=4096,
                starts_in_flight=128,
                orphans_s=3600.0,
            )
            one = ManagerProcess(settings.replica, self.loop, self.store, self.machine, self.clock, settings)
            self.managers.alive.append(one)
            while not one.manager.service._admission.is_open:
                await asyncio.sleep(0.1)
        document = {"kind": "CodeInterpreter", "spec": {"template": {}}}
        one = self.managers.alive[0]
        await self.network.call(
            self.loop.world, one.process, lambda: one.manager.service.catalog.put(KEY, document)
        )
        for number in range(routers):
            router = RouterProcess(f"r{number}", self.loop, self.store, self.managers, self.clock)
            self.routers.append(router)
            touch = router.store.touch

            async def counting(activity: Any, touch: Any = touch) -> None:
                self.touched += len(activity)
                await touch(activity)

            router.store.touch = counting  # type: ignore[method-assign]
        self.store.tables.on_change = self.change_counter

    async def _create(self) -> None:
        began = self.loop.time()
        answer = await self.ask("", 0.001)
        if answer.status == 200:
            self.waits.append(self.loop.time() - began)
            self.ids.append(SessionId(answer.session))
        else:
            self.refused += 1

    async def _request(self, id: SessionId) -> None:
        self.requests += 1
        await self.ask(id, 0.02)

    async def ask(self, session: str, work_s: float) -> Answer:
        """A request of the session, or without one, to any Router; it takes the sandbox that long."""
        router = self.random.choice(self.routers)
        call = HttpCall()
        self.network.connect(self.loop.world, call, router.process, router.accept)
        line = f"X-Agentcube-Session-Id: {session}\r\n" if session else ""
        record = self.store.tables.peek(SessionId(session))
        owner = record.owner if record else f"owner-{self.random.randrange(1000)}"
        call.transport.write(
            f"GET /v1/namespaces/default/code-interpreters/box/invocations/{work_s} HTTP/1.1\r\nHost: x\r\n"
            f"Authorization: Bearer {owner}\r\n{line}\r\n".encode()
        )
        try:
            return await call.answer
        finally:
            call.transport.close()

    async def _delete(self, id: SessionId) -> None:
        record = self.store.tables.peek(id)
        found = self.managers.some()
        if record is None or found is None:
            return
        try:
            await self.network.call(
                self.loop.world,
                found.process,
                lambda: found.manager.service.sessions.delete(id, Subject(record.owner)),
            )
        except AgentCubeError:
            pass

    async def load(self, arrivals: int, seconds: float) -> None:
        """Arrivals and as many deletions, and requests of all sessions at their gaps, for that long."""
        end = self.loop.time() + seconds
        running: set[asyncio.Task[None]] = set()

        def spawn(work: Any) -> None:
            task = self.loop.create_task(work)
            running.add(task)
            task.add_done_callback(running.discard)

        agenda: list[tuple[float, int, SessionId | None]] = []
        random, order = self.random, 0
        mean = sum(gap_s(random) for _ in range(20_000)) / 20_000
        for id in random.sample(self.ids, min(len(self.ids), int(len(self.ids) * seconds / mean))):
            order += 1
            agenda.append((self.loop.time() + seconds * random.random(), order, id))
        for _ in range(int(arrivals * seconds)):
            order += 1
            agenda.append((self.loop.time() + seconds * random.random(), order, None))
        heapq.heapify(agenda)
        while agenda:
            at, _, who = heapq.heappop(agenda)
            if at > self.loop.time():
                await asyncio.sleep(at - self.loop.time())
            if who is None:
                spawn(self._create())
                spawn(self._delete(random.choice(self.ids)))
                continue
            spawn(self._request(who))
            again = self.loop.time() + gap_s(random)
            if again < end:
                order += 1
                heapq.heappush(agenda, (again, order, who))
        while running:
            await asyncio.wait(list(running))
