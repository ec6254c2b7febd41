"""Libraries loaded ahead: what a birth with them costs, and what kernels gain.

`python -m benchmarks.kernels [ROUNDS]` opens the local driver on the default environment, with and without its
zygote, then a real server, and prints tables. Sizes are proportional shares (PSS) and what is a process's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from tests.e2e import harness
from tests.integration.local.conftest import Box, Machine

from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.environments import DEFAULT
from agentcube.runtime.keys import RsaSigner
from benchmarks.sessions import create, delete, percentile, pool_is_full, report, server

PANDAS = "import pandas as pd; print(pd.DataFrame({'a': range(5)}).a.sum())"
PAUSE_S = 0.1  # between births: as long as it takes to have a spare one again
BOXES = 10
KERNELS = 10


def head() -> None:
    print("\n| what | n | p50 / p95 / p99 ms | ratio of p50 to reference |\n|---|---|---|---|")


async def timed(act: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await act()
    return time.perf_counter() - began


def own(pid: int) -> tuple[int, int, int]:
    """Proportional share, what is nobody else's, and page tables, in KiB."""
    sizes = {}
    for file in ("smaps_rollup", "status"):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            key, _, value = line.partition(":")
            sizes[key] = value.split()[0] if value.split() else "0"
    return (
        int(sizes["Pss"]),
        int(sizes["Private_Dirty"]) + int(sizes["Private_Clean"]),
        int(sizes["VmPTE"]),
    )


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def births(driver: LocalDriver, machine: Machine, rounds: int) -> None:
    """With libraries and without, in turns, so that the machine's mood is the same for both."""
    created: dict[bool, list[float]] = {False: [], True: []}
    first: dict[bool, list[float]] = {False: [], True: []}
    boxes: list[Box] = []

    async def make(environment: str) -> None:
        boxes.append(await machine.box(driver, environment=environment))

    for number in range(2 * rounds):
        loaded = bool(number % 2)
        await asyncio.sleep(PAUSE_S)
        created[loaded].append(await timed(lambda loaded=loaded: make(DEFAULT if loaded else "")))  # type: ignore[misc]
        box = boxes.pop()
        assert (box.sandbox.facts["preload"] != "none") == loaded
        first[loaded].append(await timed(lambda box=box: box.run("true")))  # type: ignore[misc]
        await driver.destroy(box.id)
    head()
    for name, times in (("create and bind", created), ("first `true`", first)):
        report(f"{name}, bare (reference)", times[False])
        report(f"{name}, with libraries", times[True], percentile(times[False], 0.5))


async def sizes(driver: LocalDriver, machine: Machine) -> None:
    print(f"\n| memory, {BOXES} sandboxes alive | PSS / own / page tables, KiB |\n|---|---|")
    for environment in ("", DEFAULT):
        boxes = [await machine.box(driver, environment=environment) for _ in range(BOXES)]
        await asyncio.sleep(1)
        name = "with libraries" if environment else "bare"
        parts = [("process 1 (PicoD)", [box.pid for box in boxes])]
        if environment:
            parts.append(("fork server", [children(box.pid)[0] for box in boxes]))
        parts.append(("spare guard", [children(box.pid)[-1] for box in boxes]))
        for part, pids in parts:
            found = [own(pid) for pid in pids]
            middle = [sorted(column)[len(column) // 2] for column in zip(*found, strict=True)]
            print(f"| {name}: {part} | {' / '.join(map(str, middle))} |")
        for box in boxes:
            await driver.destroy(box.id)


async def local(rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="ac-") as folder:
        machine = Machine(Path(folder), RsaSigner(generate_private_key(public_exponent=65537, key_size=2048)))
        driver = LocalDriver(data_dir=machine.root / "data", runtime_dir=machine.root / "run")
        async with driver:
            warm = await machine.box(driver, environment=DEFAULT, patient=True)
            await driver.destroy(warm.id)
            await births(driver, machine, rounds)
            await sizes(driver, machine)


def cell(client: httpx2.Client, id: object, code: str, kernel: str = "main") -> str:
    """What a cell printed; its kernel is made when there is none."""
    body = {"code": code, "create": {"language": "python"}}
    printed, ended = "", {}
    with client.stream("POST", f"/v1/sessions/{id}/kernels/{kernel}/execute", json=body) as answer:
        assert answer.status_code == 200, answer.read()
        for line in answer.iter_lines():
            event = json.loads(line)
            printed += event.get("text", "") if event["event"] == "stdout" else ""
            ended = event if event["event"] == "end" else ended
    assert ended.get("status") == "ok", ended
    return printed


def took(began: float) -> float:
    return time.perf_counter() - began


def kernels(rounds: int) -> None:
    target = 4
    started, fresh, pandas, trips = [], [], [], []
    with server(target) as client:
        for number in range(rounds):
            harness.eventually(lambda: pool_is_full(client, target), within=60)
            began = time.perf_counter()
            id = create(client)["id"]
            assert cell(client, id, PANDAS if number % 2 else "print('hello')") in ("10\n", "hello\n")
            (pandas if number % 2 else fresh).append(took(began))
            harness.eventually(lambda: pool_is_full(client, target), within=60)  # it takes a processor
            began = time.perf_counter()
            answer = client.put(f"/v1/sessions/{id}/kernels/k", json={"language": "python"})
            started.append(took(began))
            assert (answer.status_code, answer.json()["state"]) == (201, "idle"), answer.text
            for _ in range(10):
                began = time.perf_counter()
                assert cell(client, id, PANDAS) == "10\n"
                trips.append(took(began))
            delete(client, id)
        head()
        report("a kernel from its request to idle, pandas imported", started)
        report("create (warm pool) to the first cell's end, `print('hello')`", fresh)
        report("create (warm pool) to the first pandas result", pandas)
        report("cell round trip, a pandas sum", trips)


def without_pool(rounds: int) -> None:
    first = []
    with server(0) as client:

        def loaded() -> bool:
            session = create(client)
            delete(client, session["id"])
            facts: dict[str, str] = session["sandbox"]["facts"]  # type: ignore[index]
            return facts["preload"] != "none"

        harness.eventually(loaded, within=60)
        for _ in range(rounds):
            time.sleep(PAUSE_S)
            began = time.perf_counter()
            id = create(client)["id"]
            assert cell(client, id, PANDAS) == "10\n"
            first.append(took(began))
            delete(client, id)
    report("create (no pool) to the first pandas result", first)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 40
    load = os.getloadavg()[0]
    print(f"machine: {os.cpu_count()} cores, {platform.system()} {platform.release()}, ", end="")
    print(f"Python {platform.python_version()}, load before {load:.1f}")
    asyncio.run(local(rounds))
    kernels(rounds)
    without_pool(rounds)


if __name__ == "__main__":
    main()
