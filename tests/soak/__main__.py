"""Runs the soak: mixed operations over many sessions, side by side, through a proxy that cuts connections at random.

Every byte and every count is checked, and that no PicoD, nor the server, holds more at the end than after the warm-up:
descriptors, memory, processes. The operations follow from the seed; when connections are cut depends on timing as well.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentcube.sdk import AsyncAgentCube
from tests.e2e import harness
from tests.integration.sdk.cutting import CuttingProxy, cutting
from tests.soak.actor import Actor, Wrong
from tests.soak.operations import Script
from tests.soak.vitals import Vitals, picod_of, vitals

WARM_UP = 0.15  # of all operations: what is made once is made by then
SETTLE_S = 100.0  # the Router may take 75 s to be done with a client that went while it was held back
QUIET_S = 7  # without a change: longer than the Router keeps idle connections to sandboxes
REPORT_S = 10.0
LIFE_S, LIFE_BYTES = 2.0, 1 << 20  # of a connection: its average, and its most


@dataclass(frozen=True, slots=True)
class Bounds:
    """By how much may be held more: connections of the moment, buffers of another size, fragments."""

    descriptors: int
    memory_kb: int


OF_PICOD = Bounds(descriptors=4, memory_kb=8 * 1024)
OF_THE_SERVER = Bounds(descriptors=40, memory_kb=48 * 1024)  # it serves all sessions


async def soak(
    operations: int, sessions: int, seed: int, server: harness.Server, proxy: CuttingProxy
) -> None:
    """Raises Wrong."""
    proxy.resting = True
    async with (
        AsyncAgentCube(proxy.url, server.api_key) as cube,
        AsyncAgentCube(server.url, server.api_key) as direct,
    ):
        boxes = [await cube.sessions.open(ttl="1h") for _ in range(sessions)]
        infos = [await box.info() for box in boxes]
        pids = [server.process.pid, *(picod_of(server, str(info.raw["sandbox"]["id"])) for info in infos)]
        actors = [
            Actor(box, direct.sessions.sandbox(box.session_id), Script(f"{seed}-{number}"))
            for number, box in enumerate(boxes)
        ]
        async with asyncio.TaskGroup() as group:
            for actor in actors:
                group.create_task(actor.prepare())
        reporting = asyncio.ensure_future(_report(actors, proxy))
        try:
            share = operations // sessions
            warm = int(share * WARM_UP)
            before = await _part(actors, pids, proxy, warm)
            after = await _part(actors, pids, proxy, share - warm, before)
        finally:
            reporting.cancel()
        async with asyncio.TaskGroup() as group:
            for actor in actors:
                group.create_task(actor.verify())
        _tell(actors, proxy)
        _compare(before, after)
        for box in boxes:
            await box.delete()


async def _part(
    actors: Sequence[Actor],
    pids: Sequence[int],
    proxy: CuttingProxy,
    count: int,
    before: Sequence[Vitals] = (),
) -> list[Vitals]:
    """So many operations in each session at once; then what each process holds, once it holds the least.

    That is when nothing has changed for a while or, with `before`, no more descriptors are held than may be.
    """
    proxy.unleash()
    async with asyncio.TaskGroup() as group:
        for actor in actors:
            group.create_task(actor.act(count))
    proxy.resting = True
    least = [vitals(pid) for pid in pids]
    end, quiet = time.monotonic() + SETTLE_S, 0
    while time.monotonic() < end and not (_has_let_go(before, least) if before else quiet >= QUIET_S):
        await asyncio.sleep(1)
        now = [vitals(pid) for pid in pids]
        less = [pair[1].size() < pair[0].size() for pair in zip(least, now, strict=True)]
        quiet = 0 if any(less) else quiet + 1
        least = [min(pair, key=Vitals.size) for pair in zip(least, now, strict=True)]
    kept = [0, *[await actor.kept_bytes() // 1024 for actor in actors]]
    return [held.keeping(kb) for held, kb in zip(least, kept, strict=True)]


def _bounds(number: int) -> Bounds:
    return OF_PICOD if number else OF_THE_SERVER


def _has_let_go(before: Sequence[Vitals], after: Sequence[Vitals]) -> bool:
    return all(
        (now.descriptors or 0) <= (was.descriptors or 0) + _bounds(number).descriptors
        and (not number or now.processes <= was.processes)
        for number, (was, now) in enumerate(zip(before, after, strict=True))
    )


def _compare(before: Sequence[Vitals], after: Sequence[Vitals]) -> None:
    for name in ("descriptors", "own_kb", "kept_kb", "processes"):
        pairs = [
            (getattr(was, name) or 0, getattr(now, name) or 0) for was, now in zip(before, after, strict=True)
        ]
        most = max(pairs[1:], key=lambda pair: pair[1] - pair[0])
        print(
            f"{name}: the server {pairs[0][0]}, then {pairs[0][1]}; the PicoD that grew most {most[0]}, then {most[1]}"
        )
    if after[1].descriptors is None:
        print("not checked: descriptors of PicoD, which an ordinary user may not count")
    for number, (was, now) in enumerate(zip(before, after, strict=True)):
        who, bounds = f"PicoD {number}" if number else "the server", _bounds(number)
        if number and now.processes > was.processes:
            raise Wrong(f"{who}: {now.processes} processes, {was.processes} before")
        if (now.descriptors or 0) > (was.descriptors or 0) + bounds.descriptors:
            raise Wrong(f"{who}: {now.descriptors} descriptors, {was.descriptors} before")
        if now.own_kb > was.own_kb + bounds.memory_kb:
            raise Wrong(f"{who}: {now.own_kb} kB of its own, {was.own_kb} before")


def _tell(actors: Sequence[Actor], proxy: CuttingProxy) -> None:
    done, uncertain = sum(a.done for a in actors), sum(a.uncertain for a in actors)
    compared = sum(a.compared for a in actors)
    print(
        f"{done} operations, {compared / 1e6:.0f} MB compared; {proxy.cuts} connections cut, "
        f"after {uncertain} of which only another look told what had happened",
        flush=True,
    )


async def _report(actors: Sequence[Actor], proxy: CuttingProxy) -> None:
    while True:
        await asyncio.sleep(REPORT_S)
        _tell(actors, proxy)


def _told(exc: BaseException) -> str:
    """What went wrong, and what had gone wrong before it."""
    causes = [exc]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    return "\n  because ".join(
        f"{e!r}" if not isinstance(e, BaseExceptionGroup) else f"{e.exceptions!r}" for e in causes
    )


def main() -> int:
    """Exit code 0 when nothing was lost, repeated or leaked."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    asked = parser.parse_args()
    print(f"soak: {asked.operations} operations, {asked.sessions} sessions, SEED={asked.seed}", flush=True)
    began = time.monotonic()
    wrong: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="agentcube-soak-") as folder,
        harness.serving(Path(folder) / "data", "--pool", "0", "--log-level", "warning") as server,
        cutting(server.url, asked.seed, most=LIFE_BYTES, early=False, life_s=LIFE_S) as proxy,
    ):
        try:
            asyncio.run(soak(asked.operations, asked.sessions, asked.seed, server, proxy))
        except* Wrong as group:
            wrong = [_told(group.exceptions[0])]  # what came after it may only follow from it
    if wrong:
        print("\n".join(f"WRONG: {what}" for what in wrong), file=sys.stderr)
        print(f"soak: failed; again with make soak SEED={asked.seed}", file=sys.stderr)
        return 1
    print(f"soak: all as it must be, after {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
