"""Processes of a session: how fresh a terminal's output is, what a process costs, how much passes. Pipes: see `inside`.

`python -m benchmarks.processes [ROUNDS]` starts a real server and prints a table. Latencies compare the clock of a
program in a sandbox with that of the client, which is the same one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2

from benchmarks.sessions import create, delete, execute, report, server, timed

WRITER = """
import os, time
for _ in range({rounds}):
    os.write(1, b"%d\\n" % time.monotonic_ns())
    time.sleep(0.005)
"""
MIB = 1 << 20


def events(client: httpx2.Client, id: object, query: str = "", **body: Any) -> Iterator[dict[str, Any]]:
    with client.stream("POST", f"/v1/sessions/{id}/processes{query}", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            yield json.loads(line)


def freshness(client: httpx2.Client, id: object, rounds: int) -> None:
    delays = []
    for event in events(client, id, command=["python3", "-c", WRITER.format(rounds=rounds)], pty={}):
        now = time.monotonic_ns()
        delays += [(now - int(written)) / 1e9 for written in event.get("data", "").split()]
    assert len(delays) == rounds
    report("from the program's write to the client, on a terminal, every 5 ms", delays)


def round_trips(client: httpx2.Client, id: object, rounds: int) -> None:
    runs = [timed(lambda: list(events(client, id, command=["true"], grace="30s"))) for _ in range(rounds)]
    report("`true` as a process: start, stream, exit", runs)
    calls = [timed(lambda: execute(client, id, "true")) for _ in range(rounds)]
    report("`true` by execute", calls)


def throughput(client: httpx2.Client, id: object) -> None:
    print("\n| output | MB/s of it |\n|---|---|")
    for query, kind in (("?encoding=base64", "bytes"), ("", "text")):
        began, size = time.perf_counter(), 256 * MIB
        path = f"/v1/sessions/{id}/processes{query}"
        with client.stream("POST", path, json={"shell": f"yes | head -c {size}"}) as answer:
            for _ in answer.iter_raw():
                pass
        print(f"| {kind}, read as it comes | {size / 1e6 / (time.perf_counter() - began):.0f} |", flush=True)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with server(1) as client:
        id = create(client)["id"]
        print("| what | n | p50 / p95 / p99 ms | |\n|---|---|---|---|")
        freshness(client, id, rounds)
        round_trips(client, id, rounds)
        throughput(client, id)
        delete(client, id)


if __name__ == "__main__":
    main()
