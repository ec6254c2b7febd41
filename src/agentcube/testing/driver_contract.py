"""What every `ports.driver.SandboxDriver` does, as tests. Subclass `DriverContract`, give what `driver_suite` asks for.

Needs pytest, with anyio's plugin (installed with anyio). Nothing here knows a driver: what differs
between them comes from the fixtures.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import AgentCubeError, Conflict, Invalid, StartFailed, StartTimedOut, Unreachable
from agentcube.model.ids import SandboxId, new_sandbox_id
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Isolation, Port, Sandbox, SandboxSpec
from agentcube.ports.driver import SandboxDriver
from agentcube.testing.driver_suite import (
    PATIENCE_S,
    BindingToken,
    Commands,
    Crash,
    OpenDriver,
    status,
    until_gone,
)
from agentcube.testing.sleep_contract import SleepContract


class DriverContract(SleepContract):
    """Run against every driver. Every test destroys what it made; the machine must start empty."""

    # What a driver is

    async def test_capabilities_are_data(self, driver: SandboxDriver) -> None:
        offered = await driver.capabilities()
        assert isinstance(offered.isolation, Isolation)
        assert driver.name

    # Creating

    async def test_a_created_sandbox_is_recorded_alive_and_listed_with_its_labels(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        sandbox = await driver.create(spec)
        assert (sandbox.id, sandbox.driver) == (spec.id, driver.name)
        assert _tier(sandbox.isolation) >= _tier(spec.isolation)
        assert await driver.observe(sandbox) is Seen.ALIVE
        listed = dict(await driver.inventory())
        assert spec.labels.items() <= listed[spec.id].items()

    async def test_declared_ports_have_endpoints(self, driver: SandboxDriver, spec: SandboxSpec) -> None:
        sandbox = await driver.create(replace(spec, ports=(Port(port=8080), Port(port=9090, name="admin"))))
        assert set(sandbox.ports) == {8080, 9090}
        if sandbox.others is not None:  # then that is how they are reached, too
            assert replace(sandbox.others, port=8080) == sandbox.ports[8080]

    async def test_creating_again_gives_the_same_sandbox(
        self, driver: SandboxDriver, spec: SandboxSpec, binding_token: BindingToken
    ) -> None:
        first = await driver.create(spec)
        await driver.bind(first, binding_token("s-1", spec.id))
        assert await driver.create(spec) == first
        assert _ids(await driver.inventory()) == [spec.id]
        with pytest.raises(Conflict):  # it is still the one that was bound
            await driver.bind(first, binding_token("s-2", spec.id))

    async def test_creating_at_the_same_time_makes_one_sandbox(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        records = await asyncio.gather(*(driver.create(spec) for _ in range(3)))
        assert records[0] == records[1] == records[2]
        assert _ids(await driver.inventory()) == [spec.id]

    async def test_many_sandboxes_are_made_at_once(
        self, driver: SandboxDriver, new_spec: Callable[[], SandboxSpec]
    ) -> None:
        specs = [new_spec() for _ in range(6)]
        made = await asyncio.gather(*map(driver.create, specs))
        assert [s.id for s in made] == [s.id for s in specs]
        assert await asyncio.gather(*map(driver.observe, made)) == [Seen.ALIVE] * 6
        await asyncio.gather(*(driver.destroy(s.id) for s in made))
        assert await driver.inventory() == []

    async def test_a_spec_it_cannot_honour_is_invalid_and_leaves_nothing(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        for wrong in (replace(spec, image="no-such-thing"), replace(spec, environment="no-such-thing")):
            with pytest.raises(Invalid, match="no-such-thing"):
                await driver.create(wrong)
        assert await driver.inventory() == []

    async def test_a_tier_it_does_not_have_is_refused_never_lowered(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        offered = (await driver.capabilities()).isolation
        for tier in tuple(Isolation)[_tier(offered) + 1 :]:
            with pytest.raises(Invalid):
                await driver.create(replace(spec, isolation=tier))
        assert await driver.inventory() == []

    async def test_a_cancelled_create_leaves_nothing_that_inventory_does_not_show(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        creating = asyncio.ensure_future(driver.create(spec))
        await asyncio.sleep(0)
        creating.cancel()
        await asyncio.wait([creating])
        await driver.destroy(spec.id)
        assert await driver.inventory() == []
        again = await driver.create(spec)  # nothing of the first one is in the way
        assert await driver.observe(again) is Seen.ALIVE

    # Binding

    async def test_binding_is_repeatable_and_final(
        self, driver: SandboxDriver, spec: SandboxSpec, binding_token: BindingToken
    ) -> None:
        sandbox = await driver.create(spec)
        await driver.bind(sandbox, binding_token("s-1", spec.id), env={"COLOUR": "green"})
        await driver.bind(sandbox, binding_token("s-1", spec.id), env={"COLOUR": "green"})
        with pytest.raises(Conflict):
            await driver.bind(sandbox, binding_token("s-2", spec.id))
        await driver.bind(sandbox, binding_token("s-1", spec.id))

    async def test_a_token_that_is_none_binds_nothing(
        self, driver: SandboxDriver, spec: SandboxSpec, binding_token: BindingToken
    ) -> None:
        sandbox = await driver.create(spec)
        with pytest.raises(AgentCubeError):
            await driver.bind(sandbox, "garbage")
        await driver.bind(sandbox, binding_token("s-2", spec.id))

    # Readiness

    async def test_without_a_command_a_sandbox_is_ready_at_once(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        sandbox = await driver.create(spec)
        async with asyncio.timeout(PATIENCE_S):
            await driver.ready(sandbox, timeout=timedelta(minutes=5))

    async def test_a_command_that_ends_fails_the_start_with_its_status(
        self, driver: SandboxDriver, spec: SandboxSpec, commands: Commands
    ) -> None:
        spec = replace(spec, command=commands.exits_with_3, ports=(Port(port=8080),))
        sandbox = await driver.create(spec)
        with pytest.raises(StartFailed, match="3"):
            await driver.ready(sandbox, timeout=timedelta(seconds=PATIENCE_S))

    async def test_a_command_that_never_listens_times_out(
        self, driver: SandboxDriver, spec: SandboxSpec, commands: Commands
    ) -> None:
        spec = replace(spec, command=commands.never_listens, ports=(Port(port=8080),))
        sandbox = await driver.create(spec)
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(StartTimedOut):
                await driver.ready(sandbox, timeout=timedelta(milliseconds=200))

    # Dialing

    async def test_picod_answers_a_dial(self, driver: SandboxDriver, spec: SandboxSpec) -> None:
        sandbox = await driver.create(spec)
        connection = await driver.dial(sandbox)
        assert connection.gettimeout() == 0
        assert await status(connection) == b"HTTP/1.1 200"

    async def test_a_command_that_listens_is_ready_and_answers_a_dial(
        self, driver: SandboxDriver, spec: SandboxSpec, commands: Commands
    ) -> None:
        spec = replace(spec, command=commands.serves_http_on_8080, ports=(Port(port=8080),))
        sandbox = await driver.create(spec)
        await driver.ready(sandbox, timeout=timedelta(seconds=PATIENCE_S))
        connection = await driver.dial(sandbox, 8080)
        assert connection.gettimeout() == 0
        assert (await status(connection)).startswith(b"HTTP/1.")

    async def test_a_port_that_nobody_listens_on_is_unreachable(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        sandbox = await driver.create(replace(spec, ports=(Port(port=8080),)))
        with pytest.raises(Unreachable):
            await driver.dial(sandbox, 8080)

    # Ending

    async def test_a_destroyed_sandbox_is_gone_for_every_call(
        self, driver: SandboxDriver, spec: SandboxSpec, binding_token: BindingToken
    ) -> None:
        sandbox = await driver.create(spec)
        await driver.destroy(spec.id)
        assert await driver.inventory() == []
        assert await driver.observe(sandbox) is Seen.GONE
        assert await driver.adopt(sandbox) is Seen.GONE
        with pytest.raises(Unreachable):
            await driver.dial(sandbox)
        with pytest.raises(AgentCubeError):
            await driver.bind(sandbox, binding_token("s-1", spec.id))

    async def test_a_sandbox_made_again_after_its_end_is_a_fresh_one(
        self, driver: SandboxDriver, spec: SandboxSpec, binding_token: BindingToken
    ) -> None:
        first = await driver.create(spec)
        await driver.bind(first, binding_token("s-1", spec.id))
        await driver.destroy(spec.id)
        second = await driver.create(spec)
        await driver.bind(second, binding_token("s-2", spec.id))
        assert await driver.observe(second) is Seen.ALIVE

    async def test_destroying_twice_or_what_never_was_is_no_error(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        await driver.create(spec)
        await asyncio.gather(driver.destroy(spec.id), driver.destroy(spec.id))
        await driver.destroy(spec.id)
        await driver.destroy(new_sandbox_id())

    async def test_destroying_while_it_is_made_leaves_nothing_hidden(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        made, _ = await asyncio.gather(driver.create(spec), driver.destroy(spec.id), return_exceptions=True)
        assert isinstance(made, Sandbox | AgentCubeError), made
        await driver.destroy(spec.id)
        assert await driver.inventory() == []

    async def test_a_crashed_sandbox_is_gone_and_destroying_it_leaves_nothing(
        self, driver: SandboxDriver, spec: SandboxSpec, crash: Crash | None
    ) -> None:
        if crash is None:
            pytest.skip("this driver's sandboxes cannot be killed from outside")
        sandbox = await driver.create(spec)
        await crash(driver, sandbox)
        await until_gone(driver, sandbox)
        assert await driver.adopt(sandbox) is Seen.GONE
        await driver.destroy(spec.id)
        assert await driver.inventory() == []

    async def test_usage_is_told_in_plain_numbers_or_not_at_all(
        self, driver: SandboxDriver, spec: SandboxSpec
    ) -> None:
        usage = await driver.usage(await driver.create(spec))
        for number in (usage.memory_bytes, usage.cpu_s, usage.pids, usage.workspace_bytes):
            assert number is None or number >= 0

    # Our own restart

    async def test_sandboxes_outlive_the_driver_and_are_adopted(
        self,
        open_driver: OpenDriver,
        new_spec: Callable[[], SandboxSpec],
        binding_token: BindingToken,
    ) -> None:
        kept, dropped = new_spec(), new_spec()
        async with open_driver() as driver:
            record = await driver.create(kept)
            gone = await driver.create(dropped)
            await driver.bind(record, binding_token("s-1", kept.id))
            await driver.destroy(dropped.id)
        async with open_driver() as driver:
            assert _ids(await driver.inventory()) == [kept.id]
            assert await driver.adopt(record) is Seen.ALIVE
            assert await driver.adopt(gone) is Seen.GONE
            assert await driver.observe(record) is Seen.ALIVE
            with pytest.raises(Conflict):
                await driver.bind(record, binding_token("s-2", kept.id))
            await driver.destroy(kept.id)
            assert await driver.inventory() == []
            assert await driver.observe(record) is Seen.GONE

    async def test_what_nobody_adopts_can_still_be_destroyed(
        self, open_driver: OpenDriver, spec: SandboxSpec
    ) -> None:
        async with open_driver() as driver:
            record = await driver.create(spec)
        async with open_driver() as driver:
            await driver.destroy(spec.id)
            assert await driver.inventory() == []
            assert await driver.adopt(record) is Seen.GONE


def _tier(isolation: Isolation) -> int:
    return tuple(Isolation).index(isolation)


def _ids(inventory: Sequence[tuple[SandboxId, object]]) -> list[SandboxId]:
    return [id for id, _ in inventory]
