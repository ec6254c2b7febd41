"""`python -m benchmarks.router [--slices N]`: prints the tables of RESULTS.md's section "Router".

Requests per CPU-second of the proxy's process: other processes may have the second core, and a busy
machine costs wall time but less CPU time. Proxies take turns every half second.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.router import haproxy
from benchmarks.router.scene import make_tokens


@dataclass
class Proxy:
    name: str
    pid: int  # 0: nothing between load and sandbox
    port: int


Result = dict[str, Any]


def rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def run_load(proxies: list[Proxy], given: dict[str, Any]) -> list[Result]:
    targets = [{"port": proxy.port, "pid": proxy.pid} for proxy in proxies]
    done = subprocess.run(
        (sys.executable, "-m", "benchmarks.router.load"),
        input=json.dumps({**given, "targets": targets}).encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    results: list[Result] = json.loads(done.stdout)
    for proxy, result in zip(proxies, results, strict=True):
        if result["bad"] or result["lost"] or not result["requests"]:
            raise SystemExit(f"{proxy.name}: not every request was answered with 200: {result}")
    return results


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


def per_cpu(ours: Result, result: Result) -> str:
    """Median, quartiles, and the Router's ratio to it, slice by slice."""
    rates = result["per_cpu_s"]
    low, middle, high = statistics.quantiles(rates, n=4)
    ratio = statistics.median(a / b for a, b in zip(ours["per_cpu_s"], rates, strict=True))
    return f"{middle:,.0f} ({low:,.0f} to {high:,.0f}) | {ratio:.2f}"


def report_busy(proxies: list[Proxy], same: list[Result], fresh: list[Result]) -> None:
    print(
        "| proxy | req/CPU-s, same headers, new query (quartiles) | Router's ratio "
        "| req/CPU-s, new traceparent too (quartiles) | Router's ratio | p50 / p95 / p99, ms | memory, MB |"
    )
    print("|---|---|---|---|---|---|---|")
    for proxy, one, other in zip(proxies, same, fresh, strict=True):
        figures = f"{per_cpu(same[0], one)} | {per_cpu(fresh[0], other)}"
        marks = " / ".join(f"{other[mark] / 1000:.1f}" for mark in ("p50", "p95", "p99"))
        print(f"| {proxy.name} | {figures} | {marks} | {rss_mb(proxy.pid):.0f} |")
    print(flush=True)


def report_calm(proxies: list[Proxy], calm: list[Result]) -> None:
    print("| at 1000 req/s | p50, µs | p95, µs | p99, µs | added p50 / p99, µs | not sent in time |")
    print("|---|---|---|---|---|---|")
    nothing = calm[-1]
    for proxy, result in zip(proxies, calm, strict=True):
        marks = " | ".join(f"{result[mark]:,.0f}" for mark in ("p50", "p95", "p99"))
        added = " / ".join(f"{result[mark] - nothing[mark]:,.0f}" for mark in ("p50", "p99"))
        print(f"| {proxy.name} | {marks} | {added} | {result['late']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=30, help="of half a second for each proxy and table")
    chosen = parser.parse_args()
    haproxy.binary()
    public_key, tokens = make_tokens()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        proxies = start(stack, folder, tokens, public_key)
        between = proxies[:-1]
        given = {
            "tokens": tokens,
            "seconds": 0.5,
            "slices": chosen.slices,
            "rate": 0,
            "traced": False,
            "seed": 1,
        }
        run_load(between, {**given, "slices": 2})  # warm up
        same = run_load(between, given)
        fresh = run_load(between, {**given, "traced": True, "seed": 2})
        calm = run_load(proxies, {**given, "traced": True, "rate": 1000, "seed": 3})
        python_version = platform.python_version()
        print(
            f"{os.cpu_count()} cores, {platform.machine()}, Linux {platform.release()}, Python {python_version}"
        )
        print(f"load average {os.getloadavg()[0]:.1f}, {chosen.slices} slices of 0.5 s each, medians\n")
        report_busy(between, same, fresh)
        report_calm(proxies, calm)


if __name__ == "__main__":
    main()
