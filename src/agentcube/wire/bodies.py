"""The JSON bodies of the Workload Manager's API: what is asked and what is answered.

Part A are the names of the Go system, which its clients send and read; part B are ours.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from agentcube.wire.fields import (
    Bytes,
    Count,
    CpuMillis,
    DnsLabel,
    Env,
    Metadata,
    MetadataPatch,
    Seconds,
)

KindName = Literal["AgentRuntime", "CodeInterpreter"]
PhaseName = Literal[
    "Pending", "Running", "Ready", "Pausing", "Paused", "Resuming", "Deleting", "Deleted", "Failed"
]


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Answered(BaseModel):
    model_config = ConfigDict(frozen=True)


# --- A. The Go system's ------------------------------------------------------------------------------------


def _texts(value: Any) -> Any:
    """Clients of the Go system may put any JSON value in metadata: what is not text is kept as JSON."""
    if not isinstance(value, dict):
        return {} if value is None else value
    return {k: v if isinstance(v, str) else json.dumps(v, separators=(",", ":")) for k, v in value.items()}


class CompatCreate(BaseModel):
    """Creation as the Go system's clients ask for it. Fields that only that system knows are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: DnsLabel
    namespace: DnsLabel
    ttl: Annotated[Seconds | None, Field(description="Lifetime; the template's maximum bounds it.")] = None
    metadata: Annotated[Metadata, BeforeValidator(_texts)] = {}


class _Camel(_Answered):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class EntryPoint(_Camel):
    """Where a path of the sandbox is reached: always the Router."""

    path: str
    protocol: Literal["HTTP"] = "HTTP"
    endpoint: Annotated[str, Field(description="host:port", examples=["127.0.0.1:8080"])]


class CompatCreated(_Camel):
    """A session that is Ready. `kind` is SandboxClaim when it came from a pool."""

    kind: Literal["Sandbox", "SandboxClaim"]
    session_id: str
    sandbox_id: str
    sandbox_name: str
    entry_points: list[EntryPoint]
    owner_id: str


class Message(_Answered):
    """A sentence."""

    message: str


# --- B. Ours -----------------------------------------------------------------------------------------------


class ResourcesBody(_Asked):
    """Limits of this session's sandbox, instead of its template's. Such a session never comes from a pool."""

    cpu: CpuMillis | None = None
    memory: Bytes | None = None
    pids: Count | None = None
    workspace: Bytes | None = None
    tmp: Bytes | None = None


class NetworkBody(_Asked):
    """What the sandbox may reach. Sandboxes of one machine have no network: nothing can be listed yet."""

    egress: Annotated[list[Any], Field(max_length=0)] = []


class CreateSession(_Asked):
    """A session to be made. What is left out comes from its template."""

    kind: KindName = "CodeInterpreter"
    namespace: DnsLabel = "default"
    name: DnsLabel
    ttl: Annotated[Seconds | None, Field(description="From creation to the end, whatever happens.")] = None
    idle_timeout: Annotated[Seconds | None, Field(description="From the last activity to the end.")] = None
    suspend_after: Annotated[Seconds | None, Field(description="From the last activity to sleep.")] = None
    env: Env = {}
    metadata: Metadata = {}
    resources: ResourcesBody | None = None
    network: NetworkBody | None = None


class PatchSession(_Asked):
    """Changes of a session. A field that is left out stays; in `metadata`, null removes a key."""

    ttl: Seconds | None = None
    idle_timeout: Seconds | None = None
    suspend_after: Annotated[Seconds | None, Field(description="null: never.")] = None
    metadata: MetadataPatch | None = None


class CreateShare(_Asked):
    """A link to be made."""

    port: Annotated[int, Field(ge=1, le=65535, description="A TCP port inside the sandbox.")]
    ttl: Annotated[
        Seconds, Field(description="Of the link: 30 days at most, and never beyond its session.")
    ] = timedelta(hours=1)


class ShareBody(_Answered):
    """A share link. Whoever has `url` has the port: treat it as a password."""

    port: int
    url: Annotated[str | None, Field(description="null where ports have no host names.")]
    token: str
    expires_at: datetime


class PortBody(_Answered):
    """A port of a session that may be reached."""

    port: int
    name: str
    declared: Annotated[bool, Field(description="By the session's template; others were exposed.")]
    path: Annotated[str, Field(description="Where the owner's programs reach it.")]
    url: Annotated[
        str | None, Field(description="Its own origin, for browsers; null where ports have no host names.")
    ]


class PortPage(_Answered):
    """A session's ports, in order."""

    items: list[PortBody]


class SandboxBody(_Answered):
    """A session's sandbox: who made it, how isolated it is, and what this machine could do for it."""

    id: str
    driver: str
    isolation: str
    facts: dict[str, str]


class UsageBody(_Answered):
    """What the sandbox uses now; null where this machine cannot tell."""

    memory_bytes: int | None
    cpu_s: float | None
    pids: int | None
    workspace_bytes: int | None


class EndpointsBody(_Answered):
    """Paths below the Router's address. `invocations` wants the session in `x-agentcube-session-id`."""

    invocations: str
    execute: str
    files: str
    logs: str


class SessionBody(_Answered):
    """A session. Times are RFC 3339 in UTC, durations seconds."""

    id: str
    kind: KindName
    namespace: str
    name: str
    generation: int
    owner: str
    phase: PhaseName
    phase_since: datetime
    reason: str
    message: str
    sleep: Annotated[str | None, Field(description="The tier it sleeps in (`frozen`); null while awake.")]
    stays_awake: Annotated[
        str | None,
        Field(description="Why `suspend_after` has no effect here; null when it has, or is not set."),
    ]
    created_at: datetime
    last_activity_at: datetime
    expires_at: datetime
    ttl: float
    idle_timeout: float
    suspend_after: float | None
    from_pool: bool
    state_lost: bool
    metadata: dict[str, str]
    sandbox: SandboxBody | None
    endpoints: EndpointsBody
    usage: UsageBody | None
    revision: int


class PhaseEvent(_Answered):
    """Event `phase` of a session's events: it came to this phase. `seq` counts its changes, from 1."""

    event: Literal["phase"] = "phase"
    seq: int
    phase: PhaseName
    reason: str
    message: str
    at: datetime


class GapEvent(_Answered):
    """Event `gap`: the changes `from` to `to` are not on record any more; null: at least one."""

    event: Literal["gap"] = "gap"
    first: Annotated[int, Field(alias="from")]
    last: Annotated[int | None, Field(alias="to")]


class PingEvent(_Answered):
    """Event `ping`: nothing happened for 15 s."""

    event: Literal["ping"] = "ping"


class SessionPage(_Answered):
    """Sessions by creation, oldest first. `next_cursor` continues after them; null at the end."""

    items: list[SessionBody]
    next_cursor: str | None


class TemplatePage(_Answered):
    """Manifests by namespace and name."""

    items: list[dict[str, Any]]
    next_cursor: str | None = None


class WaitBody(_Answered):
    """Milliseconds from a request to its session being Ready, of the latest creations."""

    p50: float | None
    p95: float | None


class PoolBody(_Answered):
    """A template's warm pool."""

    kind: KindName
    namespace: str
    name: str
    generation: int
    min: int
    max: int
    target: int
    ready: int
    starting: int
    claims: int
    misses: int
    wait_ms: WaitBody
    last_error: str | None


class PoolPage(_Answered):
    """Pools by template."""

    items: list[PoolBody]
    next_cursor: str | None = None


class Health(_Answered):
    """How the manager is."""

    status: Literal["healthy"]
