"""A driver whose sandboxes are entries in a dict, and which misbehaves when told to.

It passes `agentcube.testing.driver_contract` like a real one. A `FakeMachine` outlives the driver,
as sandboxes outlive a server: give it to a second `FakeDriver` to test a restart.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import socket
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import TracebackType
from typing import Literal, Self

from agentcube.errors import (
    AgentCubeError,
    CapacityExhausted,
    Conflict,
    DriverFailed,
    Invalid,
    StartFailed,
    StartTimedOut,
    Unauthenticated,
    Unreachable,
)
from agentcube.model.ids import SandboxId
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Endpoint, Isolation, Sandbox, SandboxSpec
from agentcube.ports.driver import Capabilities, Usage

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
"""Serves one connection that `dial` opened; the connection is closed when it returns."""

Operation = Literal[
    "create",
    "bind",
    "ready",
    "dial",
    "observe",
    "adopt",
    "inventory",
    "destroy",
    "usage",
    "suspend",
    "resume",
]
_TIERS = tuple(Isolation)  # weakest first


@dataclass(frozen=True, slots=True)
class Exits:
    """A program that ends at once with `status`."""

    status: int


@dataclass(frozen=True, slots=True)
class Silent:
    """A program that runs and never listens."""


@dataclass(frozen=True, slots=True)
class Serves:
    """A program that listens on its declared ports at once; `handler` answers, None accepts nothing."""

    handler: Handler | None = None


Program = Exits | Silent | Serves


@dataclass(slots=True)
class _Box:
    spec: SandboxSpec
    whole: bool = False
    alive: bool = True
    asleep: bool = False
    fence: int = 0
    session: str | None = None
    env: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class FakeMachine:
    """Where fake sandboxes exist. `capacity` bounds how many."""

    capacity: int = 1000
    boxes: dict[SandboxId, _Box] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Fault:
    error: AgentCubeError
    half_made: bool
    done: bool


class FakeDriver:
    """Implements `SandboxDriver` and `Suspendable` in memory.

    `programs` says what a template's `command` does (default: `Serves()`), `picod` answers dials to
    PicoD; without a handler a dial is `Unreachable`. Misbehaviour is asked for by `fail`, `hold`,
    `crash` and `blind`. `calls` lists what was asked, in order, as (operation, sandbox id).
    """

    name = "fake"

    def __init__(
        self,
        machine: FakeMachine | None = None,
        *,
        isolation: Isolation = Isolation.NAMESPACE,
        suspend: bool = True,
        environments: frozenset[str] = frozenset({"", "default"}),
        programs: Mapping[tuple[str, ...], Program] | None = None,
        picod: Handler | None = None,
    ) -> None:
        self.machine = machine or FakeMachine()
        self.calls: list[tuple[Operation, SandboxId | None]] = []
        self.blind = False
        """While true, `observe` and `adopt` cannot tell: UNKNOWN."""
        sleep = "frozen" if suspend else "none"
        self._capabilities = Capabilities(
            isolation=isolation,
            suspend=suspend,
            cannot_suspend="" if suspend else "this fake was told that it cannot",
            facts={"driver": self.name, "sleep": sleep},
        )
        self._environments = environments
        self._programs = dict(programs or {})
        self._picod = picod
        self._faults: defaultdict[Operation, deque[_Fault]] = defaultdict(deque)
        self._gates: dict[Operation, asyncio.Event] = {}
        self._creating: defaultdict[SandboxId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._served: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the connections that handlers serve. The sandboxes stay."""
        for task in self._served:
            task.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)

    # Misbehaviour

    def fail(
        self,
        operation: Operation,
        error: AgentCubeError,
        *,
        times: int = 1,
        half_made: bool = False,
        done: bool = False,
    ) -> None:
        """Let the next `times` calls of `operation` raise `error`.

        `half_made` (create only) leaves a sandbox behind that `inventory` shows and nobody has a
        record of, as a crash in the middle of `create` does. `done` (suspend and resume only): it is
        done all the same, as when only the answer was lost.
        """
        if times < 1 or (half_made and operation != "create"):
            raise ValueError("times is at least 1, and only create can leave something half-made")
        if done and operation not in ("suspend", "resume"):
            raise ValueError("only suspend and resume can be done and fail")
        self._faults[operation].extend([_Fault(error, half_made, done)] * times)

    def hold(self, operation: Operation) -> asyncio.Event:
        """Let calls of `operation` wait until the returned event is set: a slow driver, without sleeping."""
        return self._gates.setdefault(operation, asyncio.Event())

    def asleep(self, id: SandboxId) -> bool:
        """Whether the sandbox is suspended."""
        return self.machine.boxes[id].asleep

    def crash(self, id: SandboxId) -> None:
        """Let the sandbox's processes die; what is left of it stays in `inventory`."""
        self.machine.boxes[id].alive = False

    def session_of(self, id: SandboxId) -> str | None:
        """The session that the sandbox is bound to."""
        return self.machine.boxes[id].session

    async def _begin(self, operation: Operation, id: SandboxId | None) -> _Fault | None:
        self.calls.append((operation, id))
        if gate := self._gates.get(operation):
            await gate.wait()
        faults = self._faults[operation]
        return faults.popleft() if faults else None

    async def _enter(self, operation: Operation, id: SandboxId | None) -> None:
        if fault := await self._begin(operation, id):
            raise fault.error

    # SandboxDriver

    async def capabilities(self) -> Capabilities:
        return self._capabilities

    async def create(self, spec: SandboxSpec) -> Sandbox:
        self._check(spec)
        async with self._creating[spec.id]:
            box = self.machine.boxes.get(spec.id)
            if box is None or not (box.whole and box.alive):
                await self._make(spec)
        return self._record(spec)

    async def _make(self, spec: SandboxSpec) -> None:
        boxes = self.machine.boxes
        if len(boxes) >= self.machine.capacity:
            raise CapacityExhausted(f"this machine holds {self.machine.capacity} fake sandboxes")
        box = boxes[spec.id] = _Box(spec)  # seen by inventory before it is whole, as with a real driver
        left = False
        try:
            if fault := await self._begin("create", spec.id):
                left = fault.half_made
                raise fault.error
            if boxes.get(spec.id) is not box:
                raise StartFailed(f"sandbox {spec.id} was destroyed while it started")
            box.whole = True
        finally:
            if not (box.whole or left) and boxes.get(spec.id) is box:
                del boxes[spec.id]

    def _check(self, spec: SandboxSpec) -> None:
        if spec.image != "host" and not spec.image.startswith(("dir:/", "tar:/")):
            raise Invalid(f"image {spec.image!r} is unknown; use host, dir:/path or tar:/path")
        if spec.environment not in self._environments:
            raise Invalid(f"environment {spec.environment!r} is unknown")
        if _TIERS.index(spec.isolation) > _TIERS.index(self._capabilities.isolation):
            raise Invalid(f"isolation {spec.isolation} is not available; {self._capabilities.isolation} is")

    def _record(self, spec: SandboxSpec) -> Sandbox:
        where = f"/nonexistent/agentcube-fake/{spec.id}"
        return Sandbox(
            id=spec.id,
            driver=self.name,
            handle=json.dumps({"v": 1, "id": spec.id}),
            isolation=self._capabilities.isolation,
            picod=Endpoint(scheme="unix", path=f"{where}/picod.sock"),
            ports={
                p.port: Endpoint(scheme="passed", path=f"{where}/control.sock", port=p.port)
                for p in spec.ports
            },
            others=Endpoint(scheme="passed", path=f"{where}/control.sock"),
            facts=self._capabilities.facts,
        )

    async def bind(self, sandbox: Sandbox, token: str, *, env: Mapping[str, str] | None = None) -> None:
        await self._enter("bind", sandbox.id)
        box = self._awake(sandbox)
        session = token_session(token)
        if box.session not in (None, session):
            raise Conflict(f"sandbox {sandbox.id} is bound to another session", sandbox=sandbox.id)
        box.session = session
        box.env = dict(env or {})

    async def ready(self, sandbox: Sandbox, *, timeout: timedelta) -> None:
        await self._enter("ready", sandbox.id)
        match self._program(self._awake(sandbox)):
            case Exits(status):
                raise StartFailed(f"the command ended with status {status}", exit_code=status)
            case Silent():
                await asyncio.sleep(timeout.total_seconds())
                raise StartTimedOut(f"no declared port accepts connections after {timeout}")
            case Serves() | None:
                return

    async def dial(self, sandbox: Sandbox, port: int | None = None) -> socket.socket:
        await self._enter("dial", sandbox.id)
        box = self._awake(sandbox)
        handler = self._picod
        if port is not None:
            program = self._program(box)
            declared = any(p.port == port for p in box.spec.ports)
            handler = program.handler if isinstance(program, Serves) and declared else None
        if handler is None:
            raise Unreachable(f"nothing listens on {port or 'PicoD'} in sandbox {sandbox.id}")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        task = asyncio.get_running_loop().create_task(_serve(theirs, handler))
        self._served.add(task)
        task.add_done_callback(self._served.discard)
        return ours

    async def observe(self, sandbox: Sandbox) -> Seen:
        await self._enter("observe", sandbox.id)
        return self._seen(sandbox)

    async def adopt(self, sandbox: Sandbox) -> Seen:
        await self._enter("adopt", sandbox.id)
        return self._seen(sandbox)

    async def inventory(self) -> Sequence[tuple[SandboxId, Mapping[str, str]]]:
        await self._enter("inventory", None)
        return [(id, dict(box.spec.labels)) for id, box in self.machine.boxes.items()]

    async def destroy(self, id: SandboxId) -> None:
        await self._enter("destroy", id)
        self.machine.boxes.pop(id, None)

    async def usage(self, sandbox: Sandbox) -> Usage:
        await self._enter("usage", sandbox.id)
        if self._seen(sandbox) is not Seen.ALIVE:
            return Usage()
        return Usage(memory_bytes=4 << 20, cpu_s=0.1, pids=1, workspace_bytes=0)

    # Suspendable

    async def suspend(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        return await self._sleep("suspend", sandbox, fence, asleep=True)

    async def resume(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        return await self._sleep("resume", sandbox, fence, asleep=False)

    async def _sleep(
        self, operation: Literal["suspend", "resume"], sandbox: Sandbox, fence: int, *, asleep: bool
    ) -> Sandbox:
        fault = await self._begin(operation, sandbox.id)
        if fault is not None and not fault.done:
            raise fault.error
        if asleep and not self._capabilities.suspend:
            raise DriverFailed(self._capabilities.cannot_suspend)
        box = self._live(sandbox)
        if fence < box.fence:
            raise Conflict(f"sandbox {sandbox.id} is wanted otherwise meanwhile", sandbox=sandbox.id)
        box.fence, box.asleep = fence, asleep
        if fault is not None:
            raise fault.error
        return replace(sandbox, handle=json.dumps({"v": 1, "id": sandbox.id, "asleep": asleep}))

    # What there is

    def _live(self, sandbox: Sandbox) -> _Box:
        box = self.machine.boxes.get(sandbox.id)
        if box is None or not (box.whole and box.alive):
            raise Unreachable(f"sandbox {sandbox.id} does not answer", sandbox=sandbox.id)
        return box

    def _awake(self, sandbox: Sandbox) -> _Box:
        box = self._live(sandbox)
        if box.asleep:
            raise Unreachable(f"sandbox {sandbox.id} sleeps", sandbox=sandbox.id)
        return box

    def _seen(self, sandbox: Sandbox) -> Seen:
        if self.blind:
            return Seen.UNKNOWN
        box = self.machine.boxes.get(sandbox.id)
        return Seen.ALIVE if box is not None and box.whole and box.alive else Seen.GONE

    def _program(self, box: _Box) -> Program | None:
        return self._programs.get(box.spec.command, Serves()) if box.spec.command else None


def token_session(token: str) -> str:
    """The session that a binding token names: `session:<id>`, or the unverified claim of a JWT.

    Raises Unauthenticated for anything else.
    """
    if token.startswith("session:") and len(token) > len("session:"):
        return token.removeprefix("session:")
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims["session_id"])
    except (IndexError, KeyError, TypeError, binascii.Error, ValueError):
        raise Unauthenticated("the binding token names no session") from None


async def _serve(connection: socket.socket, handler: Handler) -> None:
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        await handler(reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # the dialler went away, as it may
    finally:
        writer.close()
