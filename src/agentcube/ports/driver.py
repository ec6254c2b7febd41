"""The driver port: who makes sandboxes exist. Drivers know nothing of sessions, stores or HTTP routes."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, runtime_checkable

from agentcube.model.ids import SandboxId
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Isolation, Sandbox, SandboxSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a driver can do on this machine, as data. `facts` is for people (`agentcube doctor`).

    `suspend`: the driver is `Suspendable` and has tried that it works here; otherwise `cannot_suspend`
    says why not. The tier is the fact `sleep` of every sandbox: `frozen`, or `none`.
    """

    isolation: Isolation
    suspend: bool = False
    cannot_suspend: str = "this driver cannot suspend sandboxes"
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a sandbox uses now. None where this machine cannot tell."""

    memory_bytes: int | None = None
    cpu_s: float | None = None
    pids: int | None = None
    workspace_bytes: int | None = None


class SandboxDriver(Protocol):
    """Makes, finds and destroys sandboxes.

    Every call has a deadline of its own and raises only `AgentCubeError`s: `StartFailed` and
    `StartTimedOut` from `create`/`ready`, `Invalid` for a spec this driver cannot honour (unknown
    image or environment, a tier this machine does not have), `CapacityExhausted`, `Unreachable`,
    `DriverFailed`. All calls may run concurrently, also for the same sandbox. A cancelled `create`
    leaves nothing behind or something that `inventory` lists.
    """

    name: str

    async def capabilities(self) -> Capabilities:
        """What this machine offers. Never raises for a missing power: it is data."""
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make the sandbox and return once its PicoD answers with this identity. Idempotent by `spec.id`.

        On failure nothing is left of it: no process, mount, cgroup, socket or directory.
        """
        ...

    async def bind(self, sandbox: Sandbox, token: str, *, env: Mapping[str, str] | None = None) -> None:
        """Tie the sandbox to one session, for ever. `token` is opaque here; PicoD checks it.

        `env` is the session's own environment, on top of the template's, for every process that
        starts from now on; the template's command, already running, does not see it. Repeating the
        same binding succeeds; a second session is refused (`Conflict`).
        """
        ...

    async def ready(self, sandbox: Sandbox, *, timeout: timedelta) -> None:
        """Return once every declared port accepts connections (at once when there is no command).

        Raises `StartTimedOut`, or `StartFailed` with the command's exit status when it ended first.
        """
        ...

    async def dial(self, sandbox: Sandbox, port: int | None = None) -> socket.socket:
        """A connected non-blocking stream socket to PicoD (None) or to a TCP port inside. `Unreachable`."""
        ...

    async def observe(self, sandbox: Sandbox) -> Seen:
        """ALIVE, GONE (certain: its process is no more) or UNKNOWN. Cheap: no round trip into the sandbox."""
        ...

    async def adopt(self, sandbox: Sandbox) -> Seen:
        """Take the sandbox over after our own restart.

        ALIVE only when its PicoD answers, or when it is suspended: then it cannot, and stays as it is.
        """
        ...

    async def inventory(self) -> Sequence[tuple[SandboxId, Mapping[str, str]]]:
        """Ids and labels of all that exists of us here, whole or half-made."""
        ...

    async def destroy(self, id: SandboxId) -> None:
        """Destroy all that exists of sandbox `id`, memory and workspace included. Idempotent."""
        ...

    async def usage(self, sandbox: Sandbox) -> Usage:
        """What the sandbox uses now."""
        ...


@runtime_checkable
class Suspendable(Protocol):
    """A driver that can suspend, where its `Capabilities.suspend` is true.

    Both calls are idempotent, and may come when an earlier one has an unknown outcome or our process
    was restarted: what a sandbox is, the driver finds out by itself. The record that is returned
    replaces the old one; either may be given to any call. A sandbox that is gone is `Unreachable`.

    `fence` grows with what is wanted of a sandbox. A call with a smaller one than another call had is
    late (its caller was held up while somebody else took over) and is refused: `Conflict`. For a driver
    that several processes use it must hold among all of them.
    """

    async def suspend(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        """Return once all of its processes stand still, with their state, sockets and files.

        Connections to it are accepted or not, and not answered. It is still ALIVE and can be
        destroyed. After an error the sandbox is awake, asleep or in between: `resume` puts it right.
        """
        ...

    async def resume(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
        """Return once its processes go on, from exactly where they were. No error when they do already.

        Also where nothing can suspend.
        """
        ...
