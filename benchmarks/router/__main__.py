"""`python -m benchmarks.router [--loads hot,calm] [--peers haproxy,go]`: prints the tables of RESULTS.md, "Router".

Requests per CPU-second of the proxy's process, by the kernel's accounting: other processes may have the
second core, and a busy machine costs wall time but less CPU time. Proxies take turns every half second.
They have the last core, load and sandboxes the first, so that no proxy gains by a core that another had,
and as root all of them go before other work on the machine (by niceness; in the calm load, which leaves the
machine idle mostly, by the real-time class).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.router import held
from benchmarks.router.peers import (
    Absent,
    Given,
    Proxy,
    agentcube,
    envoy,
    fastapi,
    go,
    haproxy,
    launch,
    nginx,
)
from benchmarks.router.scene import LOADS, make_tokens

PEERS: dict[str, Callable[[ExitStack, Given], Proxy]] = {
    "agentcube": agentcube.start,
    "asyncio": partial(agentcube.start, loop="asyncio"),
    "haproxy": haproxy.start,
    "haproxy-bare": partial(haproxy.start, bare=True),
    "nginx": nginx.start,
    "go": go.start,
    "envoy": envoy.start,
    "fastapi": fastapi.start,
}
ALL_LOADS = (*LOADS, "calm", "idle", "stream")
CALM_RATE = 1000
CORES = sorted(os.sched_getaffinity(0))

Result = dict[str, Any]


@contextmanager
def on_cores(cores: list[int]) -> Iterator[None]:
    """What is started meanwhile stays there."""
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, CORES)


def run_load(proxies: list[Proxy], given: dict[str, Any]) -> list[Result]:
    targets = [{"port": proxy.port, "pid": proxy.pid} for proxy in proxies]
    with on_cores(CORES[:1]):
        done = subprocess.run(
            (sys.executable, "-m", "benchmarks.router.load"),
            input=json.dumps({**given, "targets": targets}).encode(),
            stdout=subprocess.PIPE,
            check=True,
        )
    results: list[Result] = json.loads(done.stdout)
    return results


def failed(result: Result) -> str:
    """Why there are no figures, or ""."""
    if result["bad"] or result["lost"] or not result["turns"]:
        counts = f"{result['bad']} bad answers, {result['lost']} lost connections of {result['turns']}"
        return f"failed: {counts} {result['first_bad']!r}"
    return ""


def start(stack: ExitStack, folder: Path, names: list[str]) -> list[Proxy]:
    """The proxies asked for, in that order, and last no proxy."""
    public_key, tokens = make_tokens()
    with on_cores(CORES[:1]):
        sandbox = launch(stack, (sys.executable, "-m", "benchmarks.router.sandbox"))
    assert sandbox.stdout is not None
    ports = [int(port) for port in sandbox.stdout.readline().split()]
    proxies = []
    for name in names:
        own = folder / name
        own.mkdir()
        try:
            with on_cores(CORES[-1:]):
                proxies.append(PEERS[name](stack, Given(own, ports, tokens, public_key)))
        except Absent as why:
            print(f"skipped {name}: {why}", flush=True)
    (folder / "tokens.json").write_text(json.dumps(tokens))
    return [*proxies, Proxy("no proxy", 0, ports[0])]


def ratios(ours: Result, result: Result) -> str:
    """The Router's ratio to it: the median of the slices' own, and their quartiles."""
    pairs = zip(ours["per_cpu_s"], result["per_cpu_s"], strict=False)
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def report_busy(name: str, proxies: list[Proxy], results: list[Result]) -> None:
    kind = LOADS[name]
    print(f"**{name}**: {kind.title}\n")
    print(
        f"| proxy | {kind.unit} per CPU-second (quartiles) | Router's ratio to it (quartiles) | {kind.unit}/s |"
    )
    print("|---|---|---|---|")
    for proxy, result in zip(proxies, results, strict=True):
        if why := failed(result):
            print(f"| {proxy.name} | {why} | | |")
            continue
        low, middle, high = statistics.quantiles(result["per_cpu_s"], n=4)
        ratio = "" if failed(results[0]) else ratios(results[0], result)
        rate = statistics.median(result["per_s"])
        print(f"| {proxy.name} | {middle:,.0f} ({low:,.0f} to {high:,.0f}) | {ratio} | {rate:,.0f} |")
    print(flush=True)


def report_calm(proxies: list[Proxy], calm: list[Result]) -> None:
    print(f"**calm**: small answers at {CALM_RATE} requests a second\n")
    print("| proxy | p50, µs | p95, µs | p99, µs | added p50 / p95 / p99, µs | not sent in time |")
    print("|---|---|---|---|---|---|")
    nothing = calm[-1]
    for proxy, result in zip(proxies, calm, strict=True):
        if why := failed(result):
            print(f"| {proxy.name} | {why} | | | | |")
            continue
        marks = " | ".join(f"{result[mark]:,.0f}" for mark in ("p50", "p95", "p99"))
        added = " / ".join(f"{result[mark] - nothing[mark]:,.0f}" for mark in ("p50", "p95", "p99"))
        print(
            f"| {proxy.name} | {marks} | {added} | {result['late']} of {result['turns'] + result['late']} |"
        )
    print(flush=True)


def measure(load: str, folder: Path, names: list[str], slices: int) -> None:
    with ExitStack() as stack:
        if load == "calm":
            stack.enter_context(at_once())
        proxies = start(stack, folder, names)
        tokens = json.loads((folder / "tokens.json").read_text())
        given = {"tokens": tokens, "seconds": 0.5, "slices": slices, "rate": 0, "load": load, "seed": 1}
        between = proxies[:-1]
        if load == "calm":
            report_calm(proxies, run_load(proxies, {**given, "rate": CALM_RATE, "load": "hostile"}))
        else:
            report_busy(load, between, run_load(between, given))


@contextmanager
def at_once() -> Iterator[None]:
    """What is started meanwhile runs as soon as it can, where that is allowed.

    Niceness alone lets others finish their time slices first, 3 ms that would be taken for the proxy's.
    Only for loads that leave most of the machine idle.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def before_others() -> str:
    """Put this process and what it starts before others' work on this machine, where that is allowed."""
    try:
        return f"niceness {os.nice(-15)}"
    except PermissionError:
        return "niceness 0: other work on the machine is in the figures"


def chosen(text: str, known: tuple[str, ...]) -> list[str]:
    names = [name for name in text.split(",") if name] or list(known)
    if unknown := set(names) - set(known):
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(known)}")
    return names


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loads", default="", help=f"of {','.join(ALL_LOADS)}; default all")
    parser.add_argument(
        "--peers", default="", help=f"of {','.join(PEERS)}; default all. agentcube is always there"
    )
    parser.add_argument(
        "--before", type=Path, help="another checkout, whose Router is measured beside this one"
    )
    parser.add_argument("--slices", type=int, default=8, help="of half a second for each proxy and load (8)")
    asked = parser.parse_args()
    loads = chosen(asked.loads, ALL_LOADS)
    names = chosen(asked.peers, tuple(PEERS))
    names = ["agentcube", *(name for name in names if name != "agentcube")]
    if asked.before:
        PEERS["before"] = partial(agentcube.start, tree=asked.before.resolve())
        names.append("before")
    print(
        f"{len(CORES)} cores, {platform.machine()}, Linux {platform.release()}, Python {platform.python_version()},"
        f" load average {os.getloadavg()[0]:.1f}, {before_others()}, {asked.slices} slices of 0.5 s\n",
        flush=True,
    )
    for load in loads:
        with tempfile.TemporaryDirectory() as text:
            if load in ("idle", "stream"):
                held.measure(load, Path(text), {name: PEERS[name] for name in names}, CORES)
            else:
                measure(load, Path(text), names, asked.slices)


if __name__ == "__main__":
    main()
