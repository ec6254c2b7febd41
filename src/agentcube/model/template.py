"""Templates: what a new session's sandbox looks like, for both kinds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from agentcube.model.ids import SandboxId
from agentcube.model.sandbox import HostMount, Isolation, Port, Resources, SandboxSpec


class Kind(StrEnum):
    """The two resources of group `runtime.agentcube.volcano.sh`."""

    AGENT_RUNTIME = "AgentRuntime"
    CODE_INTERPRETER = "CodeInterpreter"


class TemplateKey(NamedTuple):
    """A template's address: kind, namespace, name."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class AuthMode(StrEnum):
    """Who answers invocations of a CodeInterpreter: PicoD (token checked) or the declared ports."""

    PICOD = "picod"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmPool:
    """Bounds and aim of a template's pool: `min <= target <= max`. All 0: no pool."""

    min: int = 0
    max: int = 0
    target: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """An AgentRuntime or CodeInterpreter, normalised.

    `manifest` is the YAML's content as it was put, for giving back. `generation` starts at 1 and
    grows with every change of it; sandboxes of an older generation are never claimed.
    """

    key: TemplateKey
    manifest: Mapping[str, Any]
    generation: int = 1
    image: str = "host"
    environment: str = "default"
    command: tuple[str, ...] = ()
    working_dir: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    mounts: tuple[HostMount, ...] = ()
    resources: Resources = field(default_factory=Resources)
    isolation: Isolation = Isolation.NAMESPACE
    auth_mode: AuthMode = AuthMode.PICOD
    session_timeout: timedelta = timedelta(minutes=15)
    max_session_duration: timedelta = timedelta(hours=8)
    suspend_after: timedelta | None = None
    warm_pool: WarmPool = field(default_factory=WarmPool)

    @property
    def speaks_picod(self) -> bool:
        """Whether invocations go to PicoD rather than to the declared ports."""
        return self.key.kind is Kind.CODE_INTERPRETER and self.auth_mode is AuthMode.PICOD

    @property
    def routes(self) -> tuple[Port, ...]:
        """The ports that invocations go to; empty when PicoD answers them."""
        return () if self.speaks_picod else self.ports

    def sandbox_spec(
        self,
        id: SandboxId,
        *,
        public_keys: tuple[str, ...],
        env: Mapping[str, str] | None = None,
        resources: Resources | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> SandboxSpec:
        """The spec of a sandbox of this template; `env` and `resources` are a session's own wishes."""
        return SandboxSpec(
            id=id,
            image=self.image,
            environment=self.environment,
            command=self.command,
            working_dir=self.working_dir,
            env={**self.env, **(env or {})},
            ports=self.ports,
            mounts=self.mounts,
            resources=resources or self.resources,
            isolation=self.isolation,
            public_keys=public_keys,
            labels={**(labels or {}), "template": str(self.key), "generation": str(self.generation)},
        )
