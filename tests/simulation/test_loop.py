"""The simulated event loop: order, virtual time, crashes and pauses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.simulation.errors import Stuck
from tests.simulation.loop import Process, SimLoop


@pytest.fixture
def loop() -> Iterator[SimLoop]:
    loop = SimLoop()
    yield loop
    loop.close()


def test_an_hour_passes_at_once(loop: SimLoop) -> None:
    loop.run_until_complete(asyncio.sleep(3600))
    assert loop.time() == 3600


def test_callbacks_run_in_the_order_in_which_they_were_scheduled(loop: SimLoop) -> None:
    told: list[int] = []

    async def run() -> None:
        for n in range(5):
            loop.call_soon(told.append, n)
        for n in range(5, 10):
            loop.call_later(0.001 * n, told.append, n)
        await asyncio.sleep(1)

    loop.run_until_complete(run())
    assert told == list(range(10))


def test_timeouts_and_task_groups_work(loop: SimLoop) -> None:
    async def run() -> None:
        try:
            async with asyncio.timeout(5), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(3))
                slow = group.create_task(asyncio.sleep(30))
        except TimeoutError:
            pass
        assert loop.time() == 5
        assert slow.cancelled()

    loop.run_until_complete(run())


def _begin(loop: SimLoop, process: Process, work: Any) -> asyncio.Task[Any]:
    with loop.within(process):
        return loop.create_task(work)


def test_nothing_of_a_crashed_process_runs_not_even_finally(loop: SimLoop) -> None:
    told: list[str] = []
    process = Process("p")

    async def victim() -> None:
        try:
            while True:
                await asyncio.sleep(1)
                told.append("tick")
        finally:
            told.append("finally")

    async def run() -> None:
        task = _begin(loop, process, victim())
        del task
        await asyncio.sleep(2.5)
        loop.crash(process)
        await asyncio.sleep(10)
        assert told == ["tick", "tick"]

    loop.run_until_complete(run())


def test_a_process_crashes_between_any_two_callbacks(loop: SimLoop) -> None:
    """At each of its awaits in turn, once."""

    async def steps(told: list[int]) -> None:
        for n in range(5):
            told.append(n)
            await asyncio.sleep(0)

    async def run() -> list[int]:
        seen = []
        for crash_in in range(1, 6):
            process, told = Process("p"), []  # type: Process, list[int]
            process.crash_in = crash_in
            kept = _begin(loop, process, steps(told))
            await asyncio.sleep(1)
            seen.append(len(told))
            assert not kept.done()
        return seen

    loop.on_crash = loop.crash
    assert loop.run_until_complete(run()) == [0, 1, 2, 3, 4]


def test_what_comes_for_a_paused_process_waits_in_order(loop: SimLoop) -> None:
    told: list[tuple[float, int]] = []
    process = Process("p")

    async def run() -> None:
        for n in range(3):
            loop.deliver(process, 1.0 + n, lambda n=n: told.append((loop.time(), n)))
        loop.pause(process)
        await asyncio.sleep(10)
        assert not told
        loop.go_on(process)
        await asyncio.sleep(1)

    loop.run_until_complete(run())
    assert told == [(10.0, 0), (10.0, 1), (10.0, 2)]


def test_waiting_for_what_never_comes_is_told(loop: SimLoop) -> None:
    with pytest.raises(Stuck):
        loop.run_until_complete(loop.create_future())


def test_an_exception_that_nobody_retrieves_ends_the_run(loop: SimLoop) -> None:
    async def fail() -> None:
        raise ValueError("lost")

    async def run() -> None:
        task = loop.create_task(fail())
        await asyncio.sleep(1)
        del task
        await asyncio.sleep(1)

    with contextlib.suppress(asyncio.InvalidStateError):
        loop.run_until_complete(run())
    assert "lost" in loop.problems[0]
