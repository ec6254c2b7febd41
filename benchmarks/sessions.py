"""Sessions on one machine: claims, first results, round trips, memory.

`python -m benchmarks.sessions [ROUNDS]` starts a real server (embedded store, local driver) and prints a table.
Machines are noisy: read the ratios to the reference of the same run (a bare `python3 -c pass` and a bare `true`
on the host), not single absolute times.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx2
from tests.e2e import harness

SESSION = {"kind": "CodeInterpreter", "namespace": "default", "name": "my-interpreter"}
PANDAS = "import pandas as pd; print(pd.DataFrame({'a': range(5)}).a.sum())"
IDLE = 60


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(name: str, times: list[float], reference: float | None = None) -> None:
    figures = " / ".join(f"{percentile(times, share) * 1000:.2f}" for share in (0.5, 0.95, 0.99))
    ratio = f"{percentile(times, 0.5) / reference:.2f}" if reference else ""
    print(f"| {name} | {len(times)} | {figures} | {ratio} |", flush=True)


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


@contextmanager
def server(pool: int) -> Iterator[httpx2.Client]:
    with (
        tempfile.TemporaryDirectory(prefix="agentcube-bench-") as folder,
        harness.serving(Path(folder) / "data", "--pool", str(pool)) as running,
    ):
        headers = {"authorization": f"Bearer {running.api_key}"}
        with httpx2.Client(base_url=running.url, headers=headers, timeout=60) as client:
            yield client


def create(client: httpx2.Client) -> dict[str, object]:
    answer = client.post("/v1/sessions", json=SESSION)
    assert answer.status_code == 201, answer.text
    session: dict[str, object] = answer.json()
    return session


def execute(client: httpx2.Client, id: object, *argv: str) -> str:
    answer = client.post(f"/v1/sessions/{id}/execute", json={"command": argv})
    result = answer.json()
    assert answer.status_code == 200 and result["exit_code"] == 0, result
    return str(result["stdout"])


def delete(client: httpx2.Client, id: object) -> None:
    assert client.delete(f"/v1/sessions/{id}").status_code == 204


def pool_is_full(client: httpx2.Client, target: int) -> bool:
    pools = client.get("/v1/pools").json()
    return any(p["name"] == "my-interpreter" and p["ready"] >= target for p in pools["items"])


def claims(rounds: int, python_ref: float) -> None:
    target = 4
    with server(target) as client:
        claimed, first, pandas, deletes = [], [], [], []
        for number in range(rounds):
            harness.eventually(lambda: pool_is_full(client, target), within=60)
            began = time.perf_counter()
            session = create(client)
            claimed.append(time.perf_counter() - began)
            assert session["from_pool"], session
            assert execute(client, session["id"], "python3", "-c", "print('hello')") == "hello\n"
            first.append(time.perf_counter() - began)
            if number % 10 == 0:
                pandas.append(timed(partial(execute, client, session["id"], "python3", "-c", PANDAS)))
            deletes.append(timed(partial(delete, client, session["id"])))
        print(f"tier: {session['sandbox']['isolation']}; facts: {json.dumps(session['sandbox']['facts'])}\n")
        print("| what | n | p50 / p95 / p99 ms | ratio of p50 to reference |\n|---|---|---|---|")
        report("claim of a warm session through the API", claimed)
        report("create to first `print` result, warm pool (reference: bare python)", first, python_ref)
        report("pandas result in a fresh session (fresh process; imports pandas)", pandas)
        report("delete", deletes)


def cold(rounds: int, python_ref: float) -> None:
    with server(0) as client:
        created, first = [], []
        for _ in range(rounds):
            began = time.perf_counter()
            session = create(client)
            created.append(time.perf_counter() - began)
            execute(client, session["id"], "python3", "-c", "print('hello')")
            first.append(time.perf_counter() - began)
            delete(client, session["id"])
        report("create, no pool", created)
        report("create to first `print` result, no pool (reference: bare python)", first, python_ref)


def round_trips(rounds: int, true_ref: float) -> None:
    with server(1) as client:
        id = create(client)["id"]
        calls = [timed(lambda: execute(client, id, "true")) for _ in range(rounds * 5)]
        report("exec round trip, `true` (reference: subprocess `true` on the host)", calls, true_ref)
        base = "/v1/namespaces/default/code-interpreters/my-interpreter/invocations/health"
        headers = {"x-agentcube-session-id": str(id)}
        pings = [timed(lambda: client.get(base, headers=headers)) for _ in range(rounds * 10)]
        report("PicoD health through the Router", pings)
        missing = [timed(lambda: client.get("/v1/sessions/none")) for _ in range(rounds)]
        report("404 of the manager through the Router, back to back", missing)
        paced = []
        for _ in range(rounds // 2):
            time.sleep(0.3)
            paced.append(timed(lambda: client.get("/v1/sessions/none")))
        report("the same, one each 0.3 s: what waking idle processors costs", paced)
        delete(client, id)


def memory() -> None:
    def available() -> int:
        line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
        return int(line.split()[1])

    with server(0) as client:
        delete(client, create(client)["id"])
        before = available()
        ids = [create(client)["id"] for _ in range(IDLE)]
        each = (before - available()) / IDLE
        for id in ids:
            delete(client, id)
    print(f"\nmemory per idle sandbox ({IDLE} of them, drop of MemAvailable): {each / 1024:.1f} MB")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    print(
        f"machine: {os.cpu_count()} cores, {platform.system()} {platform.release()}, Python {platform.python_version()}"
    )
    python_times = [
        timed(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True)) for _ in range(rounds)
    ]
    true_times = [timed(lambda: subprocess.run(["true"], check=True)) for _ in range(rounds)]
    python_ref, true_ref = percentile(python_times, 0.5), percentile(true_times, 0.5)
    print(f"reference: bare python {python_ref * 1000:.1f} ms, subprocess true {true_ref * 1000:.1f} ms")
    claims(rounds, python_ref)
    cold(rounds, python_ref)
    round_trips(rounds, true_ref)
    memory()


if __name__ == "__main__":
    main()
