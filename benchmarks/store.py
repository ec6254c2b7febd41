"""The embedded store alone: how long until an insert is on disk and acknowledged.

`python -m benchmarks.store [ROUNDS]`, beside the machine's own `fdatasync` of 4 KiB in the same run.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from agentcube.model.ids import new_session_id
from agentcube.model.session import Session
from agentcube.stores.sqlite import SqliteStore
from agentcube.testing.samples import full_session
from benchmarks.sessions import report

WRITERS = 64


def fresh() -> Session:
    return full_session(id=new_session_id())


def fdatasync(folder: Path, rounds: int) -> list[float]:
    times = []
    fd = os.open(folder / "reference", os.O_CREAT | os.O_WRONLY)
    for number in range(rounds):
        os.pwrite(fd, bytes(4096), number * 4096)
        began = time.perf_counter()
        os.fdatasync(fd)
        times.append(time.perf_counter() - began)
    os.close(fd)
    return times


async def inserts(store: SqliteStore, rounds: int) -> list[float]:
    times = []
    for session in [fresh() for _ in range(rounds)]:
        began = time.perf_counter()
        await store.insert(session)
        times.append(time.perf_counter() - began)
    return times


async def measure(folder: Path, rounds: int) -> None:
    reference = fdatasync(folder, rounds)
    middle = sorted(reference)[rounds // 2]
    async with SqliteStore.open(folder / "store.sqlite3") as store:
        alone = await inserts(store, rounds)
        began = time.perf_counter()
        together = await asyncio.gather(*(inserts(store, rounds // 10) for _ in range(WRITERS)))
        elapsed = time.perf_counter() - began
    print("| what | n | p50 / p95 / p99 ms | ratio of p50 to reference |\n|---|---|---|---|")
    report("reference: fdatasync of 4 KiB appended", reference)
    report("insert, one writer", alone, middle)
    report(f"insert, {WRITERS} writers in a loop", [t for times in together for t in times], middle)
    print(f"\n{WRITERS} writers: {WRITERS * (rounds // 10) / elapsed:,.0f} inserts/s")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory(prefix="agentcube-bench-") as folder:
        uvloop.run(measure(Path(folder), rounds))


if __name__ == "__main__":
    main()
