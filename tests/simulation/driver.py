"""The way from a manager to the machine: a request that was sent is done, whatever became of who sent it.

What a caller had sent that is cancelled, crashed or out of patience may be dropped, or be done much later than
anybody thinks: that is what fences and ids that are used once are for. `machine.Node` does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any

from agentcube.drivers.fake import FakeDriver
from agentcube.errors import AgentCubeError, DriverFailed
from agentcube.model.ids import SandboxId
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Sandbox, SandboxSpec
from agentcube.ports.driver import Capabilities, Usage
from tests.simulation.loop import Process
from tests.simulation.machine import Machine

_DROPPED = 0.3
"""How many requests come to nothing whose caller is gone; the others are done."""


class _Request:
    """One request to the machine. `answer` is for its caller, while that is there."""

    def __init__(
        self, machine: Machine, caller: Process, operation: str, work: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        self._machine = machine
        self._loop = machine.loop
        self._caller = caller
        self._operation = operation
        self._work = work
        self._on_way: Any = None
        self._task: asyncio.Task[Any] | None = None
        self.answer: asyncio.Future[Any] = machine.loop.create_future()
        caller.on_death[self.left] = None

    def send(self, seconds: float) -> None:
        """It arrives that much later."""
        loop = self._loop
        self._on_way = loop.deliver(self._machine.process, loop.time() + seconds, self._arrived)

    def _arrived(self) -> None:
        self._task = self._loop.create_task(self._work(), name="request")
        self._task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        if task.cancelled():
            return
        error, machine = task.exception(), self._machine
        machine.on_act(self._caller, self._operation)  # done, and its caller does not know yet
        lost = machine.trouble.answer_lost
        if error is None and lost and machine.random.random() < lost:
            error = DriverFailed("it was done or not")
        answer = None if error else task.result()
        self._loop.deliver(self._caller, self._loop.time() + 0.0005, self._answered, error, answer)

    def _answered(self, error: BaseException | None, answer: Any) -> None:
        if self.answer.done():
            return
        self._caller.on_death.pop(self.left, None)
        if error is None:
            self.answer.set_result(answer)
        else:
            known = isinstance(error, AgentCubeError)
            self.answer.set_exception(type(error)(error.detail, **error.context) if known else error)

    def left(self) -> None:
        """Nobody waits for the answer any more, if there was none."""
        self._caller.on_death.pop(self.left, None)
        if self.answer.done() and not self.answer.cancelled():
            return
        self.answer.cancel()
        dropped = self._machine.random.random() < _DROPPED
        if self._task is not None:
            if dropped:
                self._task.cancel()
        elif self._on_way is not None:
            self._on_way.cancel()
            if not dropped:
                self.send(self._machine.late_s * self._machine.random.random() ** 2)


class SimDriver:
    """Implements `ports.driver.SandboxDriver` and `Suspendable` for one manager."""

    name = FakeDriver.name

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._node = machine.node

    async def _ask(self, operation: str, work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        machine, random = self._machine, self._machine.random.random
        caller, way_s = machine.loop.current, machine.takes_s(0.002)
        unanswered = machine.trouble.unanswered
        request = _Request(machine, caller, operation, work)
        try:
            if random() < 0.5:
                machine.on_act(caller, operation)
            if random() < 0.5:  # what befalls the caller now befalls it before the request is sent
                await asyncio.sleep(way_s)
                way_s = 0.0005
            request.send(way_s)
            if unanswered and random() < unanswered:
                await asyncio.sleep(way_s * random())
                raise DriverFailed("no answer in time")
            return await request.answer
        finally:
            request.left()

    async def create(self, spec: SandboxSpec) -> Sandbox:
        made: Sandbox = await self._ask("create", lambda: self._node.create(spec))
        return made

    async def bind(self, sandbox: Sandbox, token: str, *, env: Mapping[str, str] | None = None) -> None:
        await self._ask("bind", lambda: self._node.bind(sandbox, token, env=env))

    async def ready(self, sandbox: Sandbox, *, timeout: timedelta) -> None:
        await self._ask("ready", lambda: self._node.ready(sandbox, timeout=timeout))

    async def destroy(self, id: SandboxId) -> None:
        await self._ask("destroy", lambda: self._node.destroy(id))

    async def suspend(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        asleep: Sandbox = await self._ask("suspend", lambda: self._node.suspend(sandbox, fence=fence))
        return asleep

    async def resume(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        awake: Sandbox = await self._ask("resume", lambda: self._node.resume(sandbox, fence=fence))
        return awake

    # What only looks

    async def _old(self) -> None:
        """At times what was seen is not so any more when it is told."""
        machine = self._machine
        if machine.random.random() < 0.3:
            await asyncio.sleep(machine.takes_s(0.002))

    async def capabilities(self) -> Capabilities:
        return await self._node.capabilities()

    async def observe(self, sandbox: Sandbox) -> Seen:
        seen = await self._node.observe(sandbox)
        await self._old()
        return seen

    async def adopt(self, sandbox: Sandbox) -> Seen:
        seen = await self._node.adopt(sandbox)
        await self._old()
        return seen

    async def inventory(self) -> Sequence[tuple[SandboxId, Mapping[str, str]]]:
        found = await self._node.inventory()
        await self._old()
        return found

    async def usage(self, sandbox: Sandbox) -> Usage:
        return await self._node.usage(sandbox)
