"""Requests to the machine whose caller is gone: they are done, later, or dropped."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from agentcube.errors import DriverFailed
from agentcube.model.ids import SandboxId
from agentcube.model.sandbox import SandboxSpec
from tests.simulation.driver import SimDriver
from tests.simulation.loop import Process, SimLoop
from tests.simulation.machine import Machine
from tests.simulation.network import Network

SEEDS = range(20)
LATE_S = 10.0


class Setting:
    """A machine and one manager's driver."""

    def __init__(self, seed: int) -> None:
        self.loop = SimLoop()
        self.machine = Machine(self.loop, Network(self.loop, Random(seed)), Random(seed))
        self.machine.late_s = LATE_S
        self.process = Process("m")
        self.driver = SimDriver(self.machine)
        self.destroyed: list[float] = []
        self.machine.on_destroyed = lambda id: self.destroyed.append(self.loop.time())

    def begin(self) -> asyncio.Task[None]:
        """A destroy that the manager has asked for."""
        with self.loop.within(self.process):
            return self.loop.create_task(self.driver.destroy(SandboxId("sb-1")))  # type: ignore[no-any-return]

    def run(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))


def test_an_answer_comes_when_it_is_done() -> None:
    there = Setting(1)
    asking = there.begin()
    there.run(1.0)
    assert asking.result() is None
    assert len(there.destroyed) == 1


@pytest.mark.parametrize("crash", [False, True])
def test_what_was_sent_is_done_later_or_never(crash: bool) -> None:
    late = 0
    for seed in SEEDS:
        there = Setting(seed)
        asking = there.begin()
        there.run(0.0011)  # less than any request takes
        if crash:
            there.loop.crash(there.process)
        else:
            asking.cancel()
        there.run(0.01)
        before = len(there.destroyed)
        there.run(LATE_S)
        assert len(there.destroyed) <= 1
        late += len(there.destroyed) - before
    assert 0 < late < len(SEEDS)


def test_who_loses_patience_is_told_that_it_failed() -> None:
    late = 0
    for seed in SEEDS:
        there = Setting(seed)
        there.machine.trouble.unanswered = 1.0
        asking = there.begin()
        there.run(0.01)
        assert isinstance(asking.exception(), DriverFailed)
        there.run(LATE_S)
        late += len(there.destroyed)
    assert 0 < late < len(SEEDS)


def test_a_start_that_was_given_up_can_make_its_sandbox_afterwards() -> None:
    made = 0
    for seed in SEEDS:
        there = Setting(seed)
        with there.loop.within(there.process):
            spec = SandboxSpec(id=SandboxId("sb-1"), image="host")
            asking = there.loop.create_task(there.driver.create(spec))
        there.run(0.0011)
        asking.cancel()
        there.run(LATE_S + 1.0)
        boxes = there.machine.boxes
        made += len(boxes)
        assert all(box.whole for box in boxes.values())
    assert 0 < made < len(SEEDS)
