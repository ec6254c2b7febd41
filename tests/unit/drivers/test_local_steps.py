"""Work that is seen to its end, and refusals with names."""

from __future__ import annotations

import asyncio
import errno
import os

import anyio
import pytest

from agentcube.drivers.local.steps import failure, finished, named
from agentcube.errors import CapacityExhausted, DriverFailed, StartFailed

pytestmark = pytest.mark.anyio


async def test_what_is_done_comes_back() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    async def fail() -> None:
        raise DriverFailed("it broke")

    assert await finished(work()) == 7
    with pytest.raises(DriverFailed, match="it broke"):
        await finished(fail())


@pytest.mark.parametrize("ends", ["well", "badly"])
async def test_a_cancelled_caller_leaves_when_the_work_is_over(ends: str) -> None:
    may_end = asyncio.Event()
    over = []

    async def work() -> None:
        await may_end.wait()
        over.append(True)
        if ends == "badly":
            raise DriverFailed("it broke")

    caller = asyncio.ensure_future(finished(work()))
    for _ in range(3):  # who insists waits all the same
        await asyncio.sleep(0)
        caller.cancel()
    await asyncio.sleep(0)
    assert not caller.done()
    may_end.set()
    await asyncio.wait({caller})
    assert caller.cancelled()
    assert over == [True]


async def test_a_scope_that_is_cancelled_waits_too() -> None:
    over = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        over.append(True)

    with anyio.move_on_after(0.01) as scope:
        await finished(work())
    assert scope.cancelled_caught
    assert over == [True]


def test_a_refusal_names_its_step() -> None:
    with (
        pytest.raises(DriverFailed, match=r"cannot look: No such file or directory \(/nowhere\)"),
        named("look"),
    ):
        os.stat("/nowhere")
    for number, says in ((errno.EMFILE, "ulimit -n"), (errno.ENOSPC, "no space left")):
        with pytest.raises(CapacityExhausted, match=says), named("look"):
            raise OSError(number, os.strerror(number))
    assert isinstance(failure("start", OSError(errno.EPERM, "no"), StartFailed), StartFailed)
