"""A million sessions, in the simulator: what the control plane asks of store and processors, and what gives first.

`python -m benchmarks.scale [SESSIONS] [SECONDS]` runs the product's managers and Routers (tests/simulation) without
faults on virtual time, prints the figures of docs/explanation/scale.md and draws its plot. Processor time is real and
accounted per process; the store's is what its operations cost Redis in benchmarks/RESULTS.md. Takes 4 minutes and 2 GB.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import structlog
from tests.simulation.loop import SimLoop
from tests.simulation.network import Network
from tests.simulation.planes import Managers, RouterProcess, Wall
from tests.simulation.store import StoreServer

from agentcube.model.ids import SessionId
from agentcube.stores.redis import layout
from agentcube.stores.redis.table import Table
from benchmarks import scale_plot
from benchmarks.scale_world import IDLE, ScaleWorld, premade

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


async def measure(world: ScaleWorld, arrivals: int, seconds: float) -> Row:
    """Load the world for that long."""
    await world.load(arrivals, 0.3)  # until what is under way at once is
    gc.collect()
    world.waits.clear()
    world.refused = world.requests = world.changes = world.touched = 0
    spent, operations, began = (
        Counter(world.loop.spent_ns),
        Counter(world.store.operations),
        world.loop.time(),
    )
    await world.load(arrivals, seconds)
    took = world.loop.time() - began
    cpu = world.loop.spent_ns - spent
    done = Counter(world.store.operations) - operations
    waits = sorted(world.waits)
    redis_us = sum(REDIS_US.get(name, 10) * n for name, n in done.items() if name != "touch")
    redis_us += REDIS_US["touch"] * world.touched
    return Row(
        arrivals,
        created=len(waits) / took,
        refused=world.refused / took,
        requests=world.requests / took,
        create_p50_ms=1e3 * waits[len(waits) // 2],
        create_p99_ms=1e3 * waits[int(len(waits) * 0.99)],
        manager_cores=sum(cpu[m.process] for m in world.managers.alive) / took / 1e9,
        router_cores=sum(cpu[r.process] for r in world.routers) / took / 1e9,
        redis_cores=redis_us / took / 1e6,
        changes=world.changes / took,
        operations={name: n / took for name, n in sorted(done.items())} | {"touched": world.touched / took},
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
    world = ScaleWorld(managers=1, routers=1)
    store = world.store

    async def counted(what: str, work: Any) -> None:
        before = Counter(store.operations)
        await work
        done = Counter(store.operations) - before
        each = {name: round(n / count, 3) for name, n in sorted(done.items()) if n / count >= 0.001}
        print(f"operations per {what}: {each}", flush=True)

    async def ask_all(ids: list[SessionId]) -> None:
        for at in range(0, len(ids), 50):
            await asyncio.gather(*(world.ask(id, 0.001) for id in ids[at : at + 50]))

    async def run() -> None:
        await world.begin()
        quiet = dict(store.operations)
        await asyncio.sleep(60)
        background = {name: (n - quiet.get(name, 0)) / 60 for name, n in store.operations.items()}
        print(f"operations per second at rest: { {k: round(v, 2) for k, v in background.items() if v} }")
        world.populate(count)
        ids = list(world.ids)
        await counted("request to a session that the Router does not know", ask_all(ids))
        await counted("request to one that it knows", ask_all(ids))
        # All are due within 15 minutes of what the record says; they were used just now.
        await counted(
            "session used within its timeout, put off once", asyncio.sleep(IDLE.total_seconds() - 30)
        )
        await counted("session that ends idle", asyncio.sleep(90))
        assert not world.store.tables._live.sessions

    world.loop.run_until_complete(run())
    world.loop.close()


def start_cost(count: int) -> None:
    """What the start of a manager costs that finds `count` sessions."""
    world = ScaleWorld(managers=1, routers=0)
    world.populate(count)
    before, began = _resident_mb(), time.perf_counter()

    async def run() -> None:
        await world.begin()

    world.loop.run_until_complete(run())
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1e3
    print(
        f"a manager's start with {count:,} sessions: {time.perf_counter() - began:.1f} s of processor time, "
        f"{peak - before:.0f} MB at its peak, {dict(world.store.operations)}",
        flush=True,
    )
    world.loop.close()


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    table_memory(100_000)
    small_costs()
    start_cost(min(count, 100_000))
    world, rows = ScaleWorld(), []

    async def run() -> None:
        await world.begin()
        began = time.perf_counter()
        world.populate(count)
        gc.collect()
        gc.freeze()
        print(
            f"{count:,} sessions in {time.perf_counter() - began:.0f} s, {_resident_mb():,.0f} MB", flush=True
        )
        for rate in RATES:
            rows.append(await measure(world, rate, seconds))
            print(rows[-1], flush=True)

    world.loop.run_until_complete(run())
    scale_plot.draw([asdict(row) for row in rows], count)


if __name__ == "__main__":
    main()
