"""Load on several proxies in turns, in short slices, so that a machine's moods meet all of them alike:
as many requests as come back (closed loop), or a fixed number a second (open loop).

In the open loop a request's time begins when it was due, not when it could be sent, so that a proxy
that stalls cannot hide it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import uvloop

from benchmarks.router.scene import BODY, LOADS, MESSAGE, SCENE, Kind, requests

_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.I).search
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.I).search
_FRAME = b"\x81%c\0\0\0\0%b" % (0x80 | len(MESSAGE), MESSAGE)  # masked with zeros
_ECHO = b"\x81%c%b" % (len(MESSAGE), MESSAGE)


class Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, load: Load, requests: Iterator[bytes], *, websocket: bool) -> None:
        self.load = load
        self.requests = requests
        self.websocket = websocket
        self.switched = False
        self.began = 0.0
        self.data = b""
        self.left = 0  # of the answer under way, where its head told; -1: ends with the last chunk

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if self.websocket:
            self.transport.write(next(self.requests))

    def send(self, began: float) -> None:
        self.began = began
        self.transport.write(_FRAME if self.websocket else next(self.requests))

    def data_received(self, data: bytes) -> None:
        if self.websocket:
            self.on_echo(data)
            return
        if not self.left:
            if not self.data and data.endswith(BODY) and data.startswith(b"HTTP/1.1 200"):
                self.load.on_answer(self, good=True)
                return
            data = self.data + data
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                self.data = data
                return
            self.data = b""
            if not data.startswith(b"HTTP/1.1 200"):
                self.load.first_bad = self.load.first_bad or data[:200].decode("latin-1")
                self.load.on_answer(self, good=False)
                return
            head = data[:end]
            length = _LENGTH(head)
            if length:
                self.left = int(length[1]) - (len(data) - end)
            else:
                assert _CHUNKED(head)
                self.left, data = -1, data[end:]
        elif self.left > 0:
            self.left -= len(data)
        if self.left < 0:
            data = self.data + data if self.data else data
            if data.endswith(b"0\r\n\r\n"):
                self.left, self.data = 0, b""
            else:
                self.data = data[-4:]
        if not self.left:
            self.load.on_answer(self, good=True)

    def on_echo(self, data: bytes) -> None:
        data = self.data + data
        self.data = b""
        if self.switched and data == _ECHO:
            self.load.on_answer(self, good=True)
        elif not self.switched and data.startswith(b"HTTP/1.1 101") and data.endswith(b"\r\n\r\n"):
            self.switched = True
            self.load.on_ready(self)
        elif len(data) < 2000:
            self.data = data
        else:
            self.load.on_answer(self, good=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost += not self.load.over
        self.load.all_idle.set()


class Load:
    """64 connections to one proxy, each a client of one session."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.bad = self.lost = self.late = 0
        self.first_bad = ""
        self.loops = self.over = False
        self.idle: list[Connection] = []
        self.all_idle = asyncio.Event()

    def on_ready(self, connection: Connection) -> None:
        self.idle.append(connection)
        if len(self.idle) == len(SCENE):
            self.all_idle.set()

    def on_answer(self, connection: Connection, *, good: bool) -> None:
        now = time.perf_counter()
        self.times.append(now - connection.began)
        self.bad += not good
        if self.loops and good:
            connection.send(now)
            return
        self.on_ready(connection)

    async def connect(self, port: int, tokens: dict[str, str], seed: int, kind: Kind) -> None:
        loop = asyncio.get_running_loop()
        for held in SCENE:
            make = partial(Connection, self, requests(tokens, held, seed, kind), websocket=kind.websocket)
            _, connection = await loop.create_connection(make, "127.0.0.1", port)
            if not kind.websocket:
                self.on_ready(connection)
        await self.rest()

    async def rest(self) -> None:
        """Until every connection has its answer; a proxy that lost one has failed."""
        async with asyncio.timeout(60):
            while len(self.idle) < len(SCENE) and not self.lost:
                self.all_idle.clear()
                await self.all_idle.wait()

    async def burst(self, seconds: float) -> None:
        """Each connection sends again as soon as it has its answer."""
        self.loops = True
        going, self.idle = self.idle, []
        for connection in going:
            connection.send(time.perf_counter())
        await asyncio.sleep(seconds)
        self.loops = False
        await self.rest()

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
        await self.rest()

    def close(self) -> None:
        self.over = True
        for connection in self.idle:
            connection.transport.abort()


def cpu_s(pid: int) -> float:
    """CPU time of a whole process, all its threads, those that ended too, to the nanosecond.

    The kernel's clock of another process (clock_getcpuclockid(3): its id is made of the pid like this).
    """
    return time.clock_gettime((~pid << 3) | 2)


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


async def main() -> None:
    given = json.loads(sys.stdin.readline())
    rate, seconds, tokens, kind = given["rate"], given["seconds"], given["tokens"], LOADS[given["load"]]
    results: list[dict[str, Any]] = []
    loads = [Load() for _ in given["targets"]]
    for load, target in zip(loads, given["targets"], strict=True):
        await load.connect(target["port"], tokens, given["seed"], kind)
        results.append({"per_cpu_s": [], "per_s": []})
    for turn in range(given["slices"] + 1):  # the first warms up and does not count
        order = [(turn + n) % len(loads) for n in range(len(loads))]
        for n in order:
            load, pid = loads[n], given["targets"][n]["pid"]
            if load.bad or load.lost:
                continue
            if turn == 1:
                load.times.clear()
            before, answered, began = cpu_s(pid) if pid else 0.0, len(load.times), time.perf_counter()
            await (load.trickle(rate, seconds) if rate else load.burst(seconds))
            if turn == 0:
                continue
            done = (len(load.times) - answered) * kind.units
            results[n]["per_s"].append(done / (time.perf_counter() - began))
            if pid:
                results[n]["per_cpu_s"].append(done / (cpu_s(pid) - before))
    for load, result in zip(loads, results, strict=True):
        ordered = sorted(load.times)
        marks = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        result |= {name: percentile(ordered, share) * 1e6 for name, share in marks.items()}
        result |= {
            "turns": len(ordered),
            "bad": load.bad,
            "lost": load.lost,
            "late": load.late,
            "first_bad": load.first_bad,
        }
        load.close()
    print(json.dumps(results))


if __name__ == "__main__":
    uvloop.run(main())
