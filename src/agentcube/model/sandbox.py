"""What a sandbox is asked to be (`SandboxSpec`) and what is known of one that exists (`Sandbox`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agentcube.model.ids import SandboxId


class Isolation(StrEnum):
    """Tier of isolation, weakest first. A template asks for at least one of them."""

    PROCESS = "process"  # Landlock, seccomp and rlimits only; never chosen unless asked for
    NAMESPACE = "namespace"
    GVISOR = "gvisor"
    MICROVM = "microvm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Limits of one sandbox. What `workspace_bytes` is held by (disk or memory) the driver reports."""

    cpu_millis: int = 1000
    memory_bytes: int = 1 << 30
    pids_max: int = 512
    workspace_bytes: int = 1 << 30
    tmp_bytes: int = 128 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A TCP port that something in the sandbox serves HTTP on. `path_prefix` "" or "/" matches every path.

    `passes_credentials`: invocations bring their callers' own `Authorization`, which the sandbox then has.
    """

    port: int
    path_prefix: str = "/"
    name: str = ""
    passes_credentials: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMount:
    """A directory of the machine, bound read-only (or writable) at `target` in the sandbox."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSpec:
    """Everything a driver needs to make one sandbox. `create` is idempotent by `id`.

    `image` is `host`, `dir:/abs/path` or `tar:/abs/path`. `environment` names the Python
    environment of `image: host` ("" for none). `command` () means that only PicoD runs; otherwise
    PicoD starts it. `public_keys` are PEM blocks whose tokens PicoD trusts. `labels` are kept with
    the sandbox so that it can be told apart when the store was lost. `patient`: who asks would rather
    wait some seconds than have a sandbox that starts kernels slowly; pools are.
    """

    id: SandboxId
    image: str = "host"
    environment: str = "default"
    command: tuple[str, ...] = ()
    working_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    mounts: tuple[HostMount, ...] = ()
    resources: Resources = field(default_factory=Resources)
    isolation: Isolation = Isolation.NAMESPACE
    public_keys: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    patient: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """How to reach a port of a sandbox, as data; `router.dial` turns it into a connected socket.

    * `unix`: `path` is a listening stream socket (PicoD).
    * `tcp`: `host` and `port`.
    * `passed`: connect to the control socket at `path`, ask for `port`, receive a connected socket
      as a descriptor (protocol: `agentcube.wire.control`).
    """

    scheme: str  # "unix" | "tcp" | "passed"
    path: str = ""
    host: str = ""
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A sandbox that exists: the driver's recovery token and what users may know of it.

    `handle` is opaque text, versioned by the driver that wrote it and read by nobody else.
    `others` is how a TCP port is reached that is not in `ports`, but for its number; None: not at all.
    `facts` is the isolation report (`limits: cgroup|rlimit`, `quota: hard|soft`, `uid: range|single`,
    `landlock: 7`, `workspace: disk|memory`, …), shown with the session.
    """

    id: SandboxId
    driver: str
    handle: str
    isolation: Isolation
    picod: Endpoint
    ports: Mapping[int, Endpoint] = field(default_factory=dict)
    others: Endpoint | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
