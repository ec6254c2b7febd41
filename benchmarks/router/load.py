"""Load: as many requests as come back (closed loop), or a fixed number a second (open loop).

In the open loop a request's time begins when it was due, not when it could be sent, so that a proxy
that stalls cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import cast

import uvloop

from benchmarks.router.scene import BODY, requests


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, load: Load) -> None:
        self.load = load
        self.began = 0.0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, began: float) -> None:
        self.began = began
        self.transport.write(next(self.load.requests))

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
    def __init__(self, sent: Iterator[bytes], rate: float) -> None:
        self.requests = sent
        self.rate = rate
        self.times: list[float] = []
        self.bad = self.lost = self.late = 0
        self.over = False
        self.idle: list[Connection] = []

    def on_answer(self, connection: Connection, *, good: bool) -> None:
        now = time.perf_counter()
        self.times.append(now - connection.began)
        self.bad += not good
        if self.rate or self.over:
            self.idle.append(connection)
        else:
            connection.send(now)

    async def run(self, port: int, connections: int, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        made = [
            (await loop.create_connection(lambda: Connection(self), "127.0.0.1", port))[1]
            for _ in range(connections)
        ]
        if self.rate:
            self.idle = made
            await self._open(seconds)
        else:
            for connection in made:
                connection.send(time.perf_counter())
            await asyncio.sleep(seconds)
        self.over = True
        await asyncio.sleep(0.1)
        for connection in made:
            connection.transport.abort()

    async def _open(self, seconds: float) -> None:
        began = time.perf_counter()
        for n in range(int(seconds * self.rate)):
            due = began + n / self.rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            if self.idle:
                self.idle.pop().send(due)
            else:
                self.late += 1


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def main() -> None:
    given = json.loads(sys.stdin.readline())
    load = Load(requests(given["tokens"], given["seed"]), given["rate"])
    await load.run(given["port"], given["connections"], given["seconds"])
    ordered = sorted(load.times)
    marks = {
        name: percentile(ordered, share) * 1e6 for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
    }
    print(
        json.dumps({"requests": len(ordered), "bad": load.bad, "lost": load.lost, "late": load.late, **marks})
    )


if __name__ == "__main__":
    uvloop.run(main())
