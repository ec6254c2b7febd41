"""Load on several proxies in turns, in short slices, so that a machine's moods meet all of them alike:
as many requests as come back (closed loop), or a fixed number a second (open loop).

In the open loop a request's time begins when it was due, not when it could be sent, so that a proxy
that stalls cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from benchmarks.router.scene import BODY, SCENE, requests


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, load: Load, requests: Iterator[bytes]) -> None:
        self.load = load
        self.requests = requests
        self.began = 0.0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, began: float) -> None:
        self.began = began
        self.transport.write(next(self.requests))

    def data_received(self, data: bytes) -> None:
        data = self.data + data
        good = data.startswith(b"HTTP/1.1 200")
        if good and not data.endswith(BODY):
            self.data = data
            return
        self.data = b""
        self.load.on_answer(self, good=good)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost += not self.load.over


class Load:
    """64 connections to one proxy, each a client of one session."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.bad = self.lost = self.late = 0
        self.loops = self.over = False
        self.idle: list[Connection] = []
        self.all_idle = asyncio.Event()

    def on_answer(self, connection: Connection, *, good: bool) -> None:
        now = time.perf_counter()
        self.times.append(now - connection.began)
        self.bad += not good
        if self.loops:
            connection.send(now)
            return
        self.idle.append(connection)
        if len(self.idle) == len(SCENE):
            self.all_idle.set()

    async def connect(self, port: int, tokens: dict[str, str], seed: int, *, traced: bool) -> None:
        loop = asyncio.get_running_loop()
        for held in SCENE:
            sent = requests(tokens, held, seed, traced=traced)
            _, connection = await loop.create_connection(partial(Connection, self, sent), "127.0.0.1", port)
            self.idle.append(connection)

    async def burst(self, seconds: float) -> None:
        """Each connection sends again as soon as it has its answer."""
        self.loops = True
        going, self.idle = self.idle, []
        self.all_idle.clear()
        for connection in going:
            connection.send(time.perf_counter())
        await asyncio.sleep(seconds)
        self.loops = False
        await self.all_idle.wait()

    async def trickle(self, rate: float, seconds: float) -> None:
        """`rate` requests a second; a time begins when its request was due."""
        began = time.perf_counter()
        for n in range(int(seconds * rate)):
            due = began + n / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if self.idle:
                self.idle.pop(0).send(due)
            else:
                self.late += 1
        while len(self.idle) < len(SCENE):
            self.all_idle.clear()
            await self.all_idle.wait()

    def close(self) -> None:
        self.over = True
        for connection in self.idle:
            connection.transport.abort()


def cpu_s(pid: int) -> float:
    """CPU time of a process's first thread, to the nanosecond; no proxy here works in another."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def main() -> None:
    given = json.loads(sys.stdin.readline())
    rate, seconds, tokens = given["rate"], given["seconds"], given["tokens"]
    results = []
    loads = [Load() for _ in given["targets"]]
    for load, target in zip(loads, given["targets"], strict=True):
        await load.connect(target["port"], tokens, given["seed"], traced=given["traced"])
        results.append({"per_cpu_s": []})
    for turn in range(given["slices"]):
        order = [(turn + n) % len(loads) for n in range(len(loads))]
        for n in order:
            load, pid = loads[n], given["targets"][n]["pid"]
            before, answered = cpu_s(pid) if pid else 0.0, len(load.times)
            await (load.trickle(rate, seconds) if rate else load.burst(seconds))
            if pid:
                results[n]["per_cpu_s"].append((len(load.times) - answered) / (cpu_s(pid) - before))
    for load, result in zip(loads, results, strict=True):
        ordered = sorted(load.times)
        marks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        result |= {name: percentile(ordered, share) * 1e6 for name, share in marks.items()}
        result |= {"requests": len(ordered), "bad": load.bad, "lost": load.lost, "late": load.late}
        load.close()
    print(json.dumps(results))


if __name__ == "__main__":
    uvloop.run(main())
