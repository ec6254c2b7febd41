"""The fake's misbehaviour: what the contract does not ask for and other tests rely on."""

from __future__ import annotations

import asyncio

import pytest

from agentcube.drivers.fake import FakeDriver, FakeMachine, token_session
from agentcube.errors import CapacityExhausted, Conflict, DriverFailed, StartFailed, Unauthenticated
from agentcube.model.ids import new_sandbox_id
from agentcube.model.plan import Seen
from agentcube.model.sandbox import SandboxSpec
from agentcube.ports.driver import SandboxDriver, Suspendable

pytestmark = pytest.mark.anyio


def spec() -> SandboxSpec:
    return SandboxSpec(id=new_sandbox_id())


async def test_it_has_both_protocols() -> None:
    driver: SandboxDriver = FakeDriver()
    assert isinstance(driver, Suspendable)


async def test_a_failed_start_leaves_nothing_and_the_next_one_succeeds() -> None:
    driver = FakeDriver()
    driver.fail("create", StartFailed("no luck"), times=2)
    for _ in range(2):
        with pytest.raises(StartFailed, match="no luck"):
            await driver.create(spec())
    assert await driver.inventory() == []
    await driver.create(spec())


async def test_a_half_made_sandbox_is_in_the_inventory_and_can_be_destroyed() -> None:
    driver = FakeDriver()
    wanted = spec()
    driver.fail("create", DriverFailed("crashed"), half_made=True)
    with pytest.raises(DriverFailed):
        await driver.create(wanted)
    assert [id for id, _ in await driver.inventory()] == [wanted.id]
    await driver.destroy(wanted.id)
    assert await driver.inventory() == []


async def test_a_held_create_waits_and_shows_in_the_inventory() -> None:
    driver = FakeDriver()
    gate = driver.hold("create")
    wanted = spec()
    async with asyncio.TaskGroup() as tasks:
        creating = tasks.create_task(driver.create(wanted))
        while not driver.calls:
            await asyncio.sleep(0)
        assert not creating.done()
        assert [id for id, _ in await driver.inventory()] == [wanted.id]
        gate.set()
    assert await driver.observe(creating.result()) is Seen.ALIVE


async def test_a_create_destroyed_meanwhile_fails_and_leaves_nothing() -> None:
    driver = FakeDriver()
    gate = driver.hold("create")
    wanted = spec()
    creating = asyncio.ensure_future(driver.create(wanted))
    while not driver.calls:
        await asyncio.sleep(0)
    await driver.destroy(wanted.id)
    gate.set()
    with pytest.raises(StartFailed, match="destroyed"):
        await creating
    assert await driver.inventory() == []


async def test_a_blind_driver_knows_nothing_of_a_living_or_a_lost_sandbox() -> None:
    driver = FakeDriver()
    sandbox = await driver.create(spec())
    driver.blind = True
    assert await driver.observe(sandbox) is Seen.UNKNOWN
    driver.crash(sandbox.id)
    assert await driver.adopt(sandbox) is Seen.UNKNOWN
    driver.blind = False
    assert await driver.observe(sandbox) is Seen.GONE


async def test_a_refused_bind_binds_nothing() -> None:
    driver = FakeDriver()
    sandbox = await driver.create(spec())
    driver.fail("bind", Conflict("not yours"))
    with pytest.raises(Conflict):
        await driver.bind(sandbox, "session:s-1")
    assert driver.session_of(sandbox.id) is None


async def test_a_full_machine_has_no_capacity() -> None:
    driver = FakeDriver(FakeMachine(capacity=1))
    first = await driver.create(spec())
    with pytest.raises(CapacityExhausted):
        await driver.create(spec())
    await driver.destroy(first.id)
    await driver.create(spec())


async def test_only_create_can_leave_something_half_made_and_only_sleep_be_done_in_doubt() -> None:
    with pytest.raises(ValueError):
        FakeDriver().fail("bind", Conflict(), half_made=True)
    with pytest.raises(ValueError):
        FakeDriver().fail("bind", Conflict(), done=True)


@pytest.mark.parametrize("done", [False, True])
async def test_a_suspension_or_wake_that_fails_is_done_or_not(done: bool) -> None:
    driver = FakeDriver()
    sandbox = await driver.create(spec())
    for operation, asleep in (("suspend", True), ("resume", False)):
        call = getattr(driver, operation)
        driver.fail(operation, DriverFailed("lost"), done=done)  # type: ignore[arg-type]
        with pytest.raises(DriverFailed):
            await call(sandbox, fence=1)
        assert driver.asleep(sandbox.id) is (asleep if done else not asleep)
        await call(sandbox, fence=1)
        assert driver.asleep(sandbox.id) is asleep


async def test_one_that_cannot_suspend_refuses_and_has_nothing_to_resume() -> None:
    driver = FakeDriver(suspend=False)
    sandbox = await driver.create(spec())
    with pytest.raises(DriverFailed, match="cannot"):
        await driver.suspend(sandbox, fence=1)
    await driver.resume(sandbox, fence=1)
    assert not driver.asleep(sandbox.id)


@pytest.mark.parametrize("token", ["", "session:", "a.b.c", "a.e30.c", "nonsense"])
async def test_a_token_without_a_session_is_refused(token: str) -> None:
    with pytest.raises(Unauthenticated):
        token_session(token)


async def test_the_session_of_a_jwt_is_its_claim() -> None:
    assert token_session("e30.eyJzZXNzaW9uX2lkIjoicy0xIn0.sig") == "s-1"
