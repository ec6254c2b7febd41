"""The small parts of the manager, each alone."""

import asyncio

import pytest
from pydantic import ValidationError

from agentcube.errors import LimitExceeded, StartTimedOut, Unavailable
from agentcube.manager.admission import Admission
from agentcube.manager.flight import Flight, Interrupted
from agentcube.manager.pools import _percentile
from agentcube.manager.settings import ManagerSettings

pytestmark = pytest.mark.anyio


async def test_a_start_is_ended_by_its_deadline() -> None:
    with pytest.raises(StartTimedOut, match=r"0\.01 s"):
        async with Flight().starting(0.01):
            await asyncio.Event().wait()


async def test_an_interrupted_start_is_told_from_a_late_one() -> None:
    flight = Flight()
    asyncio.get_running_loop().call_soon(flight.interrupt)
    with pytest.raises(Interrupted):
        async with flight.starting(60):
            await asyncio.Event().wait()
    async with flight.starting(60):  # the next step is not interrupted by the last one's interruption
        pass
    flight.interrupt()  # nothing to interrupt


async def test_a_cancelled_start_is_cancelled_and_not_late() -> None:
    async def start() -> None:
        async with Flight().starting(60):
            await asyncio.Event().wait()

    task = asyncio.ensure_future(start())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()


async def test_creations_under_way_are_bounded_and_end_with_the_manager() -> None:
    admission = Admission(ManagerSettings(creates_waiting_max=1))

    async def create() -> None:
        async with admission.creating():
            pass

    first = asyncio.ensure_future(create())
    await asyncio.sleep(0)
    with pytest.raises(LimitExceeded):
        await create()
    admission.close()
    with pytest.raises(Unavailable):
        await first


def test_percentiles_are_of_what_was_measured() -> None:
    assert _percentile([], 0.5) is None
    assert _percentile([3.0], 0.95) == 3.0
    assert _percentile([2.0, 1.0], 0.5) == 1.0
    assert _percentile([float(n) for n in range(1, 101)], 0.95) == 95.0


def test_settings_are_bounded_and_closed() -> None:
    for wrong in ({"start_timeout_s": 0}, {"observe_batch": 0}, {"colour": "red"}):
        with pytest.raises(ValidationError):
            ManagerSettings(**wrong)


def test_settings_come_from_the_environment_under_their_prefix(monkeypatch) -> None:
    monkeypatch.setenv("AGENTCUBE_MANAGER_SESSIONS_MAX", "7")
    assert ManagerSettings().sessions_max == 7
