"""`python -m benchmarks.router [--rounds N] [--seconds S]`: prints the tables of RESULTS.md's section "Router".

Requests per CPU-second of the proxy's process: other processes may have the second core, and a busy
machine costs wall time but little CPU time. Proxies take turns within every round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.router import haproxy
from benchmarks.router.scene import make_tokens

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Proxy:
    name: str
    pid: int  # 0: nothing between load and sandbox
    port: int
    per_cpu_s: list[float] = field(default_factory=list)
    busy: list[dict[str, float]] = field(default_factory=list)
    calm: list[dict[str, float]] = field(default_factory=list)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def run_load(given: dict[str, Any]) -> dict[str, float]:
    done = subprocess.run(
        (sys.executable, "-m", "benchmarks.router.load"),
        input=json.dumps(given).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, float] = json.loads(done.stdout)
    if result["bad"] or result["lost"] or not result["requests"]:
        raise SystemExit(f"not every request was answered with 200: {result}")
    return result


def python(stack: ExitStack, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = (sys.executable, "-m", f"benchmarks.router.{module}", *arguments)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stack.callback(stop, process)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def start(stack: ExitStack, folder: Path, tokens: dict[str, str], public_key: str) -> list[Proxy]:
    sandbox = python(stack, "sandbox")
    assert sandbox.stdout is not None
    ports = [int(port) for port in sandbox.stdout.readline().split()]
    proxies = []
    for name, arguments in (("AgentCube Router, uvloop", ()), ("AgentCube Router, asyncio", ("--asyncio",))):
        router = python(stack, "subject", *arguments)
        assert router.stdin is not None
        assert router.stdout is not None
        router.stdin.write(json.dumps({"sandboxes": ports, "public_key": public_key}).encode() + b"\n")
        router.stdin.flush()
        proxies.append(Proxy(name, router.pid, int(router.stdout.readline())))
    for name, bare in (("HAProxy 2.8, same work", False), ("HAProxy 2.8, bare", True)):
        process, port = haproxy.start(folder / str(bare), ports, tokens, bare=bare)
        stack.callback(stop, process)
        wait_for(port)
        proxies.append(Proxy(name, process.pid, port))
    return [*proxies, Proxy("no proxy", 0, ports[0])]


def wait_for(port: int) -> None:
    give_up = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def measure(proxies: list[Proxy], tokens: dict[str, str], rounds: int, seconds: float) -> None:
    given = {"tokens": tokens, "connections": 64}
    for turn in range(-1, rounds):  # the first round only warms up
        for proxy in proxies[turn % len(proxies) :] + proxies[: turn % len(proxies)]:
            before = cpu_s(proxy.pid) if proxy.pid else 0.0
            busy = run_load(
                {**given, "port": proxy.port, "seed": turn, "rate": 0, "seconds": seconds if turn >= 0 else 2}
            )
            spent = cpu_s(proxy.pid) - before if proxy.pid else float("inf")
            calm = run_load(
                {
                    **given,
                    "port": proxy.port,
                    "seed": -turn,
                    "rate": 1000,
                    "seconds": seconds if turn >= 0 else 1,
                }
            )
            if turn >= 0:
                proxy.per_cpu_s.append(busy["requests"] / spent)
                proxy.busy.append(busy)
                proxy.calm.append(calm)
                print(
                    f"round {turn + 1}: {proxy.name}: {busy['requests'] / spent:,.0f}",
                    file=sys.stderr,
                    flush=True,
                )


def middle(results: list[dict[str, float]], name: str) -> float:
    return statistics.median(result[name] for result in results)


def report(proxies: list[Proxy], seconds: float) -> None:
    ours, nothing = proxies[0], proxies[-1]
    print(
        "| proxy | req/CPU-s (min to max) | Router's ratio | req/s, 64 connections | p50 / p95 / p99, ms | memory, MB |"
    )
    print("|---|---|---|---|---|---|")
    for proxy in proxies[:-1]:
        rate = statistics.median(proxy.per_cpu_s)
        ratio = statistics.median(a / b for a, b in zip(ours.per_cpu_s, proxy.per_cpu_s, strict=True))
        marks = " / ".join(f"{middle(proxy.busy, mark) / 1000:.1f}" for mark in ("p50", "p95", "p99"))
        spread = f"{rate:,.0f} ({min(proxy.per_cpu_s):,.0f} to {max(proxy.per_cpu_s):,.0f})"
        wall = middle(proxy.busy, "requests") / seconds
        print(f"| {proxy.name} | {spread} | {ratio:.2f} | {wall:,.0f} | {marks} | {rss_mb(proxy.pid):.0f} |")
    print()
    print("| at 1000 req/s | p50, µs | p95, µs | p99, µs | added p50 / p99, µs | not sent in time |")
    print("|---|---|---|---|---|---|")
    for proxy in proxies:
        marks = " | ".join(f"{middle(proxy.calm, mark):,.0f}" for mark in ("p50", "p95", "p99"))
        added = " / ".join(f"{middle(proxy.calm, m) - middle(nothing.calm, m):,.0f}" for m in ("p50", "p99"))
        print(f"| {proxy.name} | {marks} | {added} | {sum(r['late'] for r in proxy.calm):.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    chosen = parser.parse_args()
    haproxy.binary()
    public_key, tokens = make_tokens()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proxies = start(stack, folder, tokens, public_key)
        measure(proxies, tokens, chosen.rounds, chosen.seconds)
        python_version = platform.python_version()
        print(
            f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, Python {python_version}"
        )
        print(
            f"load average {os.getloadavg()[0]:.1f}, {chosen.rounds} rounds of {chosen.seconds:g} s each, medians\n"
        )
        report(proxies, chosen.seconds)


if __name__ == "__main__":
    main()
