"""The machine that has the sandboxes, and the product's fake driver made slow and unreliable on it.

Managers reach it by `driver.py`.

A sandbox here is a `_Box` of the fake driver plus a server that answers HTTP: it counts the requests it
served, which is the state whose loss nobody may hide.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from agentcube.drivers.fake import FakeDriver, FakeMachine
from agentcube.errors import DriverFailed, StartFailed
from agentcube.model.ids import SandboxId
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Sandbox
from tests.simulation.loop import Process, SimLoop
from tests.simulation.network import End, Network

SESSION_LINE = b"x-agentcube-session-id: "
_QUIET = frozenset({"observe", "inventory", "usage", "dial"})  # as cheap as they are on a real machine


class Trouble:
    """How the driver misbehaves now. Chances are per call, times are seconds."""

    def __init__(self) -> None:
        self.calm()

    def calm(self) -> None:
        """A driver without faults."""
        self.slow = 0.0
        self.slow_s = 0.0
        self.fails = 0.0
        self.answer_lost = 0.0
        self.unanswered = 0.0  # the caller's patience ends while the request is on its way
        self.blind = 0.0


class Box:
    """What the world knows of one sandbox beyond the fake driver."""

    __slots__ = ("ends", "id", "served", "waiting")

    def __init__(self, id: SandboxId) -> None:
        self.id = id
        self.served = 0
        self.ends: dict[BoxServer, None] = {}
        self.waiting: list[Callable[[], None]] = []  # what came while it stood still


class Machine(FakeMachine):
    """Boxes that outlive every driver. `on_request` is told of every request a box begins to serve."""

    def __init__(self, loop: SimLoop, network: Network, random: Random) -> None:
        super().__init__(capacity=200)
        self.loop = loop
        self.network = network
        self.random = random
        self.process = Process("machine")
        self.trouble = Trouble()
        self.pace = 1.0
        """How many times longer than in the best case everything takes."""
        self.late_s = 0.0
        """How late a request may be done whose caller is gone."""
        self.node = Node(self)
        self.worlds: dict[SandboxId, Box] = {}
        self.on_request: Callable[[SandboxId, str, str | None], None] = lambda id, session, bound: None
        self.on_act: Callable[[Process, str], None] = lambda process, operation: None
        self.on_done: Callable[[str], None] = lambda session: None
        self.on_asleep: Callable[[SandboxId], None] = lambda id: None
        self.on_awake: Callable[[SandboxId], None] = lambda id: None
        self.on_bound: Callable[[SandboxId, str], None] = lambda id, session: None
        self.on_destroyed: Callable[[SandboxId], None] = lambda id: None

    def takes_s(self, usual_s: float) -> float:
        """How long something takes now."""
        random, trouble = self.random.random, self.trouble
        seconds = usual_s * self.pace * (0.5 + random())
        if trouble.slow and random() < trouble.slow:
            seconds += trouble.slow_s * random()
        return seconds

    def world_of(self, id: SandboxId) -> Box:
        """The box's state here, made when it is first asked for."""
        box = self.worlds.get(id)
        if box is None:
            box = self.worlds[id] = Box(id)
        return box

    def kill(self, id: SandboxId) -> None:
        """Its processes die; what is left of it stays in the inventory."""
        self.boxes[id].alive = False
        self.gone(id)

    def gone(self, id: SandboxId) -> None:
        """Its connections break."""
        box = self.worlds.pop(id, None)
        if box is not None:
            with self.loop.within(self.process):
                for server in list(box.ends):
                    server.transport.reset()

    def woke(self, id: SandboxId) -> None:
        """Its processes go on with what came meanwhile."""
        box = self.worlds.get(id)
        if box is not None:
            waiting, box.waiting = box.waiting, []
            with self.loop.within(self.process):
                for work in waiting:
                    work()

    async def connect(self, factory: Callable[[], asyncio.Protocol], path: str) -> Any:
        """A Router dials the PicoD at `path`. Raises OSError as a dead socket does."""
        near = self.loop.current
        await asyncio.sleep(self.network.weather.delay_s)
        id = SandboxId(path.rsplit("/", 2)[1])
        box = self.boxes.get(id)
        if box is None or not (box.whole and box.alive):
            raise ConnectionRefusedError(111, "connection refused")
        protocol = factory()
        end = self.network.connect(near, protocol, self.process, lambda: BoxServer(self, id))
        return end, protocol


class BoxServer(asyncio.Protocol):
    """One connection to a sandbox: HTTP/1.1 without bodies in requests."""

    def __init__(self, machine: Machine, id: SandboxId) -> None:
        self._machine = machine
        self._id = id
        self._session = ""  # whose request is being served
        self.transport: End

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._machine.world_of(self._id).ends[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        box = self._machine.worlds.get(self._id)
        if box is not None:
            box.ends.pop(self, None)
        self._done()

    def _done(self) -> None:
        if self._session:
            session, self._session = self._session, ""
            self._machine.on_done(session)

    def data_received(self, data: bytes) -> None:
        machine = self._machine
        real = machine.boxes.get(self._id)
        if real is None or not real.alive:
            self.transport.reset()
        elif real.asleep:
            machine.world_of(self._id).waiting.append(lambda: self.data_received(data))
        else:
            self._serve(data)

    def _serve(self, head: bytes) -> None:
        at = head.index(SESSION_LINE) + len(SESSION_LINE)
        session = head[at : head.index(b"\r\n", at)].decode()
        machine = self._machine
        self._session = session
        machine.on_request(self._id, session, machine.boxes[self._id].session)
        work_s = float(head.split(b" ", 2)[1].rsplit(b"/", 1)[1])
        machine.loop.call_later(work_s, self._answer)

    def _answer(self) -> None:
        machine = self._machine
        real = machine.boxes.get(self._id)
        if real is None or not real.alive or self.transport.is_closing():
            return
        box = machine.world_of(self._id)
        if real.asleep:
            box.waiting.append(self._answer)
            return
        self._done()
        box.served += 1
        body = b"%s %d" % (self._id.encode(), box.served)
        self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


class Node(FakeDriver):
    """The machine's side, one for all managers. It fails as `Machine.trouble` says and tells what it did."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._sim = machine

    async def _begin(self, operation: Any, id: SandboxId | None) -> Any:
        trouble, random = self._sim.trouble, self._sim.random.random
        self.calls.clear()
        if operation in _QUIET:
            if trouble.blind and random() < trouble.blind:
                raise DriverFailed("the driver cannot tell")
            return await super()._begin(operation, id)
        if operation == "create":  # seen in the inventory while it is being made
            await asyncio.sleep(self._sim.takes_s(0.02))
        if trouble.fails and random() < trouble.fails:
            half = operation == "create" and random() < 0.5
            self.fail(operation, StartFailed("no luck") if half else DriverFailed("no luck"), half_made=half)
        return await super()._begin(operation, id)

    async def bind(self, sandbox: Sandbox, token: str, *, env: Mapping[str, str] | None = None) -> None:
        await super().bind(sandbox, token, env=env)
        session = self._sim.boxes[sandbox.id].session
        assert session is not None
        self._sim.on_bound(sandbox.id, session)

    async def adopt(self, sandbox: Sandbox) -> Seen:
        seen = await super().adopt(sandbox)
        trouble = self._sim.trouble
        return Seen.UNKNOWN if trouble.blind and self._sim.random.random() < trouble.blind else seen

    async def destroy(self, id: SandboxId) -> None:
        await super().destroy(id)
        self._sim.gone(id)
        self._sim.on_destroyed(id)

    async def suspend(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        asleep = await super().suspend(sandbox, fence=fence)
        self._sim.on_asleep(sandbox.id)
        return asleep

    async def resume(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        awake = await super().resume(sandbox, fence=fence)
        self._sim.woke(sandbox.id)
        self._sim.on_awake(sandbox.id)
        return awake
