"""What every `ports.driver.Suspendable` does, as tests. Where the driver says that it cannot suspend, they skip."""

from __future__ import annotations

import asyncio

import pytest

from agentcube.errors import AgentCubeError, Conflict, Unreachable
from agentcube.model.plan import Seen
from agentcube.model.sandbox import SandboxSpec
from agentcube.ports.driver import SandboxDriver, Suspendable
from agentcube.testing.driver_suite import BindingToken, Crash, DriverSuite, OpenDriver, status, until_gone

_SILENCE_S = 0.3  # no answer for that long is none: an awake PicoD takes a millisecond


class SleepContract(DriverSuite):
    """Suspending and resuming: repeatable, in the order that was wanted, and nothing is lost."""

    @pytest.fixture
    async def sleeper(self, driver: SandboxDriver) -> Suspendable:
        """The driver, where it can suspend."""
        offered = await driver.capabilities()
        if not offered.suspend:
            pytest.skip(f"cannot suspend here: {offered.cannot_suspend}")
        assert isinstance(driver, Suspendable)
        return driver

    async def test_suspend_and_resume_are_repeatable_and_keep_the_sandbox(
        self, driver: SandboxDriver, sleeper: Suspendable, spec: SandboxSpec, binding_token: BindingToken
    ) -> None:
        sandbox = await driver.create(spec)
        await driver.bind(sandbox, binding_token("s-1", spec.id))
        await sleeper.resume(sandbox, fence=1)  # nothing to do
        asleep = await sleeper.suspend(await sleeper.suspend(sandbox, fence=1), fence=2)
        assert await driver.observe(asleep) is Seen.ALIVE
        awake = await sleeper.resume(await sleeper.resume(asleep, fence=3), fence=3)
        assert awake.id == sandbox.id
        assert await driver.observe(awake) is Seen.ALIVE
        with pytest.raises(Conflict):  # it is still the one that was bound
            await driver.bind(awake, binding_token("s-2", spec.id))

    async def test_a_suspended_sandbox_answers_nobody_until_it_is_resumed(
        self, driver: SandboxDriver, sleeper: Suspendable, spec: SandboxSpec
    ) -> None:
        sandbox = await driver.create(spec)
        asleep = await sleeper.suspend(sandbox, fence=1)
        for record in (sandbox, asleep):  # whoever has an old one is not served either
            with pytest.raises((TimeoutError, Unreachable)):
                await status(await driver.dial(record), within=_SILENCE_S)
        assert await status(await driver.dial(await sleeper.resume(sandbox, fence=1))) == b"HTTP/1.1 200"

    async def test_suspending_and_resuming_at_once_does_either(
        self, driver: SandboxDriver, sleeper: Suspendable, spec: SandboxSpec
    ) -> None:
        sandbox = await driver.create(spec)
        for _ in range(3):
            await asyncio.gather(*(call(sandbox, fence=1) for call in (sleeper.suspend, sleeper.resume) * 2))
        assert await status(await driver.dial(await sleeper.resume(sandbox, fence=1))) == b"HTTP/1.1 200"

    async def test_who_was_held_up_cannot_undo_what_was_wanted_after(
        self, driver: SandboxDriver, sleeper: Suspendable, spec: SandboxSpec
    ) -> None:
        sandbox = await driver.create(spec)
        asleep = await sleeper.suspend(sandbox, fence=4)
        with pytest.raises(Conflict):
            await sleeper.resume(asleep, fence=3)
        awake = await sleeper.resume(asleep, fence=5)
        with pytest.raises(Conflict):
            await sleeper.suspend(sandbox, fence=4)
        assert await status(await driver.dial(awake)) == b"HTTP/1.1 200"

    async def test_a_suspended_sandbox_can_be_destroyed(
        self, driver: SandboxDriver, sleeper: Suspendable, spec: SandboxSpec
    ) -> None:
        asleep = await sleeper.suspend(await driver.create(spec), fence=1)
        await driver.destroy(spec.id)
        assert await driver.observe(asleep) is Seen.GONE
        assert await driver.inventory() == []
        for call in (sleeper.suspend, sleeper.resume):
            with pytest.raises(Unreachable):
                await call(asleep, fence=1)

    async def test_a_sandbox_that_dies_suspended_is_gone(
        self, driver: SandboxDriver, sleeper: Suspendable, spec: SandboxSpec, crash: Crash | None
    ) -> None:
        if crash is None:
            pytest.skip("this driver's sandboxes cannot be killed from outside")
        asleep = await sleeper.suspend(await driver.create(spec), fence=1)
        await crash(driver, asleep)
        await until_gone(driver, asleep)
        with pytest.raises(Unreachable):
            await sleeper.resume(asleep, fence=1)

    async def test_suspended_sandboxes_outlive_the_driver_and_sleep_on(
        self, open_driver: OpenDriver, spec: SandboxSpec
    ) -> None:
        async with open_driver() as driver:
            if not (await driver.capabilities()).suspend:
                pytest.skip("cannot suspend here")
            assert isinstance(driver, Suspendable)
            asleep = await driver.suspend(await driver.create(spec), fence=1)
        async with open_driver() as driver:
            assert isinstance(driver, Suspendable)
            assert await driver.adopt(asleep) is Seen.ALIVE
            with pytest.raises((TimeoutError, Unreachable)):
                await status(await driver.dial(asleep), within=_SILENCE_S)
            awake = await driver.resume(asleep, fence=1)
            assert await status(await driver.dial(awake)) == b"HTTP/1.1 200"
            await driver.destroy(spec.id)
            assert await driver.inventory() == []

    async def test_the_power_to_suspend_is_as_it_says(self, driver: SandboxDriver, spec: SandboxSpec) -> None:
        offered = await driver.capabilities()
        sandbox = await driver.create(spec)
        assert offered.suspend == (sandbox.facts.get("sleep", "none") != "none")
        assert offered.suspend or offered.cannot_suspend
        if offered.suspend:
            assert isinstance(driver, Suspendable)
            await driver.destroy((await driver.suspend(sandbox, fence=1)).id)
        elif isinstance(driver, Suspendable):
            with pytest.raises(AgentCubeError):
                await driver.suspend(sandbox, fence=1)
            assert await status(await driver.dial(await driver.resume(sandbox, fence=1))) == b"HTTP/1.1 200"
