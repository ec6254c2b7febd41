"""The store on Redis and Valkey: latency, operations per second, CPU of both sides, news, memory.

`python -m benchmarks.shared_store [ROUNDS]`, each server on this machine with its append-only file on, beside one
GET by the ordinary client library. Calls one after the other, and by 64 callers at once over the store's one link.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import uvloop
import valkey.asyncio

from agentcube.model.ids import new_session_id
from agentcube.model.session import Session
from agentcube.stores.redis.address import parse_address
from agentcube.stores.redis.settings import RedisSettings
from agentcube.stores.redis.store import RedisStore
from agentcube.testing.redis_server import RedisServer, find_server, running
from agentcube.testing.samples import NOW, full_session, sample_session, sample_warm
from benchmarks.sessions import percentile

CALLERS = 64
TOUCHED = 10_000

Call = Callable[[int], Awaitable[object]]


class Bench:
    """Rows of one server's table."""

    def __init__(self, server: RedisServer, rounds: int) -> None:
        self.server = server
        self.rounds = rounds

    async def row(self, name: str, call: Call) -> None:
        """One row: `call(i)` for many i, alone and together; CPU is of the second."""
        alone = [await _timed(call, number) for number in range(self.rounds)]
        numbers = iter(range(self.rounds, self.rounds * 11))

        async def caller() -> list[float]:
            return [await _timed(call, number) for number in numbers]

        ours, theirs, began = _cpu_s(), self.server_cpu_s(), time.perf_counter()
        together = [t for times in await asyncio.gather(*(caller() for _ in range(CALLERS))) for t in times]
        rate = len(together) / (time.perf_counter() - began)
        ours, theirs = (
            (now - was) / len(together) * 1e6
            for now, was in ((_cpu_s(), ours), (self.server_cpu_s(), theirs))
        )
        figures = (
            f"{_percentiles(alone)} | {_percentiles(together)} | {rate:,.0f} | {ours:.1f} | {theirs:.1f}"
        )
        print(f"| {name} | {figures} |", flush=True)

    def server_cpu_s(self) -> float:
        lines = bytes(self.server.command("INFO", "cpu")).decode().splitlines()
        used = dict(line.split(":") for line in lines if ":" in line)
        return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])

    def memory_bytes(self) -> int:
        lines = bytes(self.server.command("INFO", "memory")).decode().splitlines()
        return next(int(line.partition(":")[2]) for line in lines if line.startswith("used_memory:"))


async def measure(server: RedisServer, rounds: int) -> None:
    bench = Bench(server, rounds)
    total = rounds * 11
    print(
        "| call | alone: p50 / p95 / p99 ms | 64 callers: p50 / p95 / p99 ms | calls/s | our CPU, µs | its CPU, µs |"
    )
    print("|---|---|---|---|---|---|")
    address, settings = parse_address(server.url), RedisSettings(prefix="bench")
    async with RedisStore.open(address, settings) as store, RedisStore.open(address, settings) as other:
        library = valkey.asyncio.Valkey(port=server.port, protocol=3)
        await library.set("k", "x" * 1300)
        await bench.row("reference: GET of 1.3 KB by valkey-py", lambda i: library.get("k"))
        await library.aclose()
        before = bench.memory_bytes()
        sessions = [full_session(id=new_session_id(), owner=f"o{i % 1000}") for i in range(total)]
        await bench.row("insert", lambda i: store.insert(sessions[i]))
        per_session = (bench.memory_bytes() - before) / total
        await bench.row("get", lambda i: store.get(sessions[i].id))
        await bench.row("replace", lambda i: store.replace(replace(sessions[i], revision=1)))
        for _ in range(total // 500):
            await asyncio.gather(*(store.put_warm(sample_warm()) for _ in range(500)))
        wanted = [sample_session() for _ in range(total)]
        await bench.row("claim", lambda i: store.claim_warm(wanted[i]))
        far = NOW.replace(year=2030)

        async def deadline(i: int) -> None:
            (session,) = await store.lease_due(now=far, owner="me", lease=timedelta(seconds=30), limit=1)
            await store.replace(replace(session, due_at=far + timedelta(days=1)))

        await bench.row("deadline: lease one, put it off", deadline)
        await _news(store, other, sessions, rounds)
        await _touch(bench, store, sessions)
        print(
            f"Memory of the server per session of {len(_record(sessions[0])):,} bytes: {per_session:,.0f} bytes.\n"
        )


async def _news(store: RedisStore, other: RedisStore, sessions: list[Session], rounds: int) -> None:
    changes = other.changes()
    times = []
    for session in sessions[:rounds]:
        session = await store.get(session.id)
        began = time.perf_counter()
        changing = asyncio.ensure_future(store.replace(session))
        while await anext(changes) != session.id:
            pass
        times.append(time.perf_counter() - began)
        await changing
    print(f"\nFrom a call of `replace` in one store to the news of it in another: {_percentiles(times)} ms.")


async def _touch(bench: Bench, store: RedisStore, sessions: list[Session]) -> None:
    """Activity as a Router flushes it: once a second, all at once."""
    ids = [session.id for session in sessions[:TOUCHED]]
    moments = [sessions[0].last_activity_at + timedelta(seconds=i) for i in range(20)]
    ours, theirs = _cpu_s(), bench.server_cpu_s()
    for moment in moments:
        await store.touch(dict.fromkeys(ids, moment))
    count = len(ids) * len(moments)
    ours, theirs = (_cpu_s() - ours) / count * 1e6, (bench.server_cpu_s() - theirs) / count * 1e6
    print(
        f"Activity of {len(ids):,} sessions at once, CPU per session: ours {ours:.1f} µs, the server's {theirs:.1f} µs."
    )


def _record(session: Session) -> bytes:
    from agentcube.stores.redis.layout import session_record

    return session_record(session)


async def _timed(call: Call, number: int) -> float:
    began = time.perf_counter()
    await call(number)
    return time.perf_counter() - began


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _percentiles(times: list[float]) -> str:
    return " / ".join(f"{percentile(times, share) * 1000:.2f}" for share in (0.5, 0.95, 0.99))


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    for kind in ("redis", "valkey"):
        program = find_server(kind)
        if program is None:
            print(f"no {kind}-server here\n")
            continue
        with (
            tempfile.TemporaryDirectory(prefix="agentcube-bench-") as folder,
            running(program, Path(folder), "--appendonly", "yes") as server,
        ):
            lines = bytes(server.command("INFO", "server")).decode().splitlines()
            names = dict(line.split(":", 1) for line in lines if ":" in line)
            print(f"### {kind} {names.get('valkey_version', names['redis_version'])}\n")
            uvloop.run(measure(server, rounds))


if __name__ == "__main__":
    main()
