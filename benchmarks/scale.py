"""A million sessions, in the simulator: what the control plane asks of store and processors, and what gives first.

`python -m benchmarks.scale [SESSIONS] [SECONDS]` runs the product's managers and Routers (tests/simulation) without
faults on virtual time, prints the figures of docs/explanation/scale.md and draws its plot. Processor time is real and
accounted per process; the store's is what its operations cost Redis in benchmarks/RESULTS.md. Takes 4 minutes and 2 GB.
"""

from __future__ import annotations

import asyncio
import gc
import heapq
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import structlog
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
from agentcube.stores.redis import layout
from agentcube.stores.redis.table import Table
from benchmarks import scale_plot

KEY = TemplateKey(Kind.CODE_INTERPRETER, "default", "box")
IDLE = timedelta(minutes=15)
MANAGERS = ROUTERS = 4
RATES = (1_000, 3_000, 10_000)
REDIS_US = {
    "insert": 47,
    "claim_warm": 72,
    "get": 6,
    "replace": 31,
    "delete": 31,
    "lease_due": 50,
    "touch": 2,
}
"""Processor time of Redis per operation, from benchmarks/RESULTS.md (`delete` as `replace`, `touch` per session)."""
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


@dataclass(slots=True)
class Row:
    """One second, on average, at one rate of arrivals."""

    arrivals: int
    created: float = 0
    refused: float = 0
    requests: float = 0
    create_p50_ms: float = 0
    create_p99_ms: float = 0
    manager_cores: float = 0
    router_cores: float = 0
    redis_cores: float = 0
    changes: float = 0
    operations: dict[str, float] | None = None


class Scale:
    """The world."""

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
        answer = await self._ask("", 0.001)
        if answer.status == 200:
            self.waits.append(self.loop.time() - began)
            self.ids.append(SessionId(answer.session))
        else:
            self.refused += 1

    async def _request(self, id: SessionId) -> None:
        self.requests += 1
        await self._ask(id, 0.02)

    async def _ask(self, session: str, work_s: float) -> Answer:
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

    async def row(self, arrivals: int, seconds: float) -> Row:
        """Measure."""
        await self.load(arrivals, 0.3)  # until what is under way at once is
        gc.collect()
        self.waits.clear()
        self.refused = self.requests = self.changes = self.touched = 0
        spent, operations, began = (
            Counter(self.loop.spent_ns),
            Counter(self.store.operations),
            self.loop.time(),
        )
        await self.load(arrivals, seconds)
        took = self.loop.time() - began
        cpu = self.loop.spent_ns - spent
        done = Counter(self.store.operations) - operations
        waits = sorted(self.waits)
        redis_us = sum(REDIS_US.get(name, 10) * n for name, n in done.items() if name != "touch")
        redis_us += REDIS_US["touch"] * self.touched
        return Row(
            arrivals,
            created=len(waits) / took,
            refused=self.refused / took,
            requests=self.requests / took,
            create_p50_ms=1e3 * waits[len(waits) // 2],
            create_p99_ms=1e3 * waits[int(len(waits) * 0.99)],
            manager_cores=sum(cpu[m.process] for m in self.managers.alive) / took / 1e9,
            router_cores=sum(cpu[r.process] for r in self.routers) / took / 1e9,
            redis_cores=redis_us / took / 1e6,
            changes=self.changes / took,
            operations={name: n / took for name, n in sorted(done.items())}
            | {"touched": self.touched / took},
        )


def table_memory(count: int) -> None:
    """What a Router holds per 100,000 sessions, read from records as they lie in Redis."""
    loop = SimLoop()
    random, store = Random(5), StoreServer(loop, Random(6))
    router = RouterProcess("r", loop, store, Managers(Network(loop, Random(7))), Wall(loop))
    records = [(s.id, layout.session_record(s)) for s in (premade(n, random) for n in range(count))]
    table, before = Table(count), _resident_mb()
    for id, record in records:
        table.put(layout.session_of(record, id=id), record)
    known = _resident_mb()
    router.store.table = table
    for id, _ in records:
        router.engine.sessions.find(id)
    used = _resident_mb()
    loop.close()
    print(
        f"memory per {count:,} sessions: {known - before:.0f} MB known, {used - known:.0f} MB more once each was used; "
        f"a record is {sum(len(r) for _, r in records) / count:.0f} bytes",
        flush=True,
    )


def _resident_mb() -> float:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def small_costs() -> None:
    """Operations of the store per request and per idle session, one manager and one Router, nothing else going on."""
    count = 2_000
    scale = Scale(managers=1, routers=1)
    store = scale.store

    async def counted(what: str, work: Any) -> None:
        before = Counter(store.operations)
        await work
        done = Counter(store.operations) - before
        each = {name: round(n / count, 3) for name, n in sorted(done.items()) if n / count >= 0.001}
        print(f"operations per {what}: {each}", flush=True)

    async def ask_all(ids: list[SessionId]) -> None:
        for at in range(0, len(ids), 50):
            await asyncio.gather(*(scale._ask(id, 0.001) for id in ids[at : at + 50]))

    async def run() -> None:
        await scale.begin()
        quiet = dict(store.operations)
        await asyncio.sleep(60)
        background = {name: (n - quiet.get(name, 0)) / 60 for name, n in store.operations.items()}
        print(f"operations per second at rest: { {k: round(v, 2) for k, v in background.items() if v} }")
        scale.populate(count)
        ids = list(scale.ids)
        await counted("request to a session that the Router does not know", ask_all(ids))
        await counted("request to one that it knows", ask_all(ids))
        # All are due within 15 minutes of what the record says; they were used just now.
        await counted(
            "session used within its timeout, put off once", asyncio.sleep(IDLE.total_seconds() - 30)
        )
        await counted("session that ends idle", asyncio.sleep(90))
        assert not scale.store.tables._live.sessions

    scale.loop.run_until_complete(run())
    scale.loop.close()


def start_cost(count: int) -> None:
    """What the start of a manager costs that finds `count` sessions."""
    scale = Scale(managers=1, routers=0)
    scale.populate(count)
    before, began = _resident_mb(), time.perf_counter()

    async def run() -> None:
        await scale.begin()

    scale.loop.run_until_complete(run())
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    print(
        f"a manager's start with {count:,} sessions: {time.perf_counter() - began:.1f} s of processor time, "
        f"{peak - before:.0f} MB at its peak, {dict(scale.store.operations)}",
        flush=True,
    )
    scale.loop.close()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    table_memory(100_000)
    small_costs()
    start_cost(min(count, 100_000))
    scale, rows = Scale(), []

    async def run() -> None:
        await scale.begin()
        began = time.perf_counter()
        scale.populate(count)
        gc.collect()
        gc.freeze()
        print(
            f"{count:,} sessions in {time.perf_counter() - began:.0f} s, {_resident_mb():,.0f} MB", flush=True
        )
        for rate in RATES:
            rows.append(await scale.row(rate, seconds))
            print(rows[-1], flush=True)

    scale.loop.run_until_complete(run())
    scale_plot.draw([asdict(row) for row in rows], count)


if __name__ == "__main__":
    main()
