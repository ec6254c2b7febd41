"""AgentRuntime and CodeInterpreter manifests: the CRDs of `runtime.agentcube.volcano.sh/v1alpha1`.

What belongs to Kubernetes (metadata, PodSpec) is accepted and kept whole, known or not; what is
ours is checked strictly. What a machine can make of a manifest is decided elsewhere.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from agentcube.errors import Invalid
from agentcube.wire.fields import DnsLabel, GoDuration, has_lone_surrogate
from agentcube.wire.problems import InvalidFields

POOL_MAX = 1000  # sandboxes in one template's pool: above what one machine holds
_NODES_MAX, _DEPTH_MAX = 20_000, 64  # a manifest has hundreds of nodes; YAML aliases can make millions


class _Ours(BaseModel):
    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, frozen=True)


class _Kubernetes(BaseModel):
    model_config = ConfigDict(extra="allow", alias_generator=to_camel, frozen=True)


class ObjectMeta(_Kubernetes):
    """A Kubernetes ObjectMeta; only name and namespace mean something here."""

    name: DnsLabel
    namespace: DnsLabel = "default"
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class TargetPort(_Ours):
    """A port that the sandbox serves; requests go to the longest matching prefix.

    `passCredentials` is ours: invocations bring their callers' own `Authorization` header, so only for
    agents that are trusted with their callers' API keys. Otherwise it is the Router's own token.
    """

    path_prefix: str = ""
    name: str = ""
    port: Annotated[int, Field(ge=1, le=65535)]
    protocol: Literal["HTTP", "HTTPS"] = "HTTP"
    pass_credentials: bool = False

    @model_validator(mode="after")
    def _prefix_is_a_path(self) -> TargetPort:
        if self.path_prefix and not self.path_prefix.startswith("/"):
            raise ValueError("pathPrefix must begin with '/'")
        return self


class EnvVar(_Kubernetes):
    """One environment variable. `valueFrom` is kept for clusters."""

    name: str
    value: str | None = None
    value_from: Any = None


def _quantity(value: Any) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError('a quantity is text such as "512Mi", or a number')
    return value


Quantity = Annotated[Any, AfterValidator(_quantity)]


class ResourceRequirements(_Kubernetes):
    """Kubernetes resources; `limits` bounds the sandbox."""

    limits: dict[str, Quantity] | None = None


class VolumeMount(_Kubernetes):
    """Where a volume appears in the container."""

    name: str
    mount_path: str
    read_only: bool = False
    sub_path: str = ""


class HostPath(_Kubernetes):
    """A directory of the machine."""

    path: str


class Volume(_Kubernetes):
    """A pod volume; drivers say which sources they have."""

    name: str
    host_path: HostPath | None = None


class Container(_Kubernetes):
    """A pod's container."""

    name: str = ""
    image: str = ""
    command: list[str] | None = None
    args: list[str] | None = None
    env: list[EnvVar] | None = None
    env_from: list[Any] | None = None
    working_dir: str = ""
    resources: ResourceRequirements | None = None
    volume_mounts: list[VolumeMount] | None = None


class PodSpec(_Kubernetes):
    """A Kubernetes PodSpec, of which the first container is the sandbox."""

    containers: Annotated[list[Container], Field(min_length=1)]
    init_containers: list[Container] | None = None
    volumes: list[Volume] | None = None


class PodTemplate(_Kubernetes):
    """An AgentRuntime's pod."""

    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    spec: PodSpec


class InterpreterTemplate(_Ours):
    """A CodeInterpreter's sandbox. `networkPolicy` is kept for clusters."""

    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    runtime_class_name: str | None = None
    image: str = ""
    image_pull_policy: str | None = None
    image_pull_secrets: list[dict[str, Any]] | None = None
    environment: list[EnvVar] | None = None
    command: list[str] | None = None
    args: list[str] | None = None
    resources: ResourceRequirements | None = None
    network_policy: dict[str, Any] | None = None


class WarmPoolSpec(_Ours):
    """Bounds and aim of the pool; what is left out follows from the rest."""

    min: Annotated[int, Field(ge=0, le=POOL_MAX)] | None = None
    max: Annotated[int, Field(ge=0, le=POOL_MAX)] | None = None
    target: Annotated[int, Field(ge=0, le=POOL_MAX)] | None = None

    def sizes(self) -> tuple[int, int, int]:
        """`(min, target, max)`, completed."""
        least = self.min if self.min is not None else 0
        aim = self.target if self.target is not None else least
        return least, aim, self.max if self.max is not None else max(aim, least)

    @model_validator(mode="after")
    def _in_order(self) -> WarmPoolSpec:
        least, aim, most = self.sizes()
        if not least <= aim <= most:
            raise ValueError(
                f"sizes contradict each other: min {least} <= target {aim} <= max {most} must hold"
            )
        return self


class NetworkSpec(_Ours):
    """What the sandbox may reach. Nothing, unless listed."""

    egress: list[Any] = []


class _Spec(_Ours):
    session_timeout: GoDuration | None = None
    max_session_duration: GoDuration | None = None
    suspend_after: GoDuration | None = None
    warm_pool: WarmPoolSpec | None = None
    environment: Annotated[str, Field(max_length=64, pattern=r"^([a-z0-9][a-z0-9._-]*)?$")] | None = None
    isolation: Literal["any", "process", "namespace", "gvisor", "microvm"] | None = None
    network: NetworkSpec | None = None
    volumes: list[Any] | None = None
    scheduler_name: str | None = None
    queue: str | None = None
    priority_class_name: str | None = None

    @property
    def idle_timeout(self) -> timedelta:
        """`sessionTimeout`, 15 minutes where it is left out."""
        return self.session_timeout or timedelta(minutes=15)

    @property
    def ttl(self) -> timedelta:
        """`maxSessionDuration`, 8 hours where it is left out."""
        return self.max_session_duration or timedelta(hours=8)


class AgentRuntimeSpec(_Spec):
    """What an AgentRuntime asks for."""

    target_port: list[TargetPort] = []
    pod_template: PodTemplate


class CodeInterpreterSpec(_Spec):
    """What a CodeInterpreter asks for."""

    ports: list[TargetPort] | None = None
    template: InterpreterTemplate
    warm_pool_size: Annotated[int, Field(ge=0, le=POOL_MAX)] | None = None
    auth_mode: Literal["picod", "none"] = "picod"

    @model_validator(mode="after")
    def _one_pool_size(self) -> CodeInterpreterSpec:
        size, pool = self.warm_pool_size, self.warm_pool
        if size is not None and pool is not None and size != pool.sizes()[1]:
            raise ValueError(f"warmPoolSize {size} contradicts warmPool's target {pool.sizes()[1]}")
        return self


class _Manifest(_Ours):
    api_version: Literal["runtime.agentcube.volcano.sh/v1alpha1"] = "runtime.agentcube.volcano.sh/v1alpha1"
    metadata: ObjectMeta
    status: Any = None


class AgentRuntimeManifest(_Manifest):
    """A whole AgentRuntime."""

    kind: Literal["AgentRuntime"]
    spec: AgentRuntimeSpec


class CodeInterpreterManifest(_Manifest):
    """A whole CodeInterpreter."""

    kind: Literal["CodeInterpreter"]
    spec: CodeInterpreterSpec


Manifest = AgentRuntimeManifest | CodeInterpreterManifest
_BY_KIND: dict[str, TypeAdapter[Any]] = {
    "AgentRuntime": TypeAdapter(AgentRuntimeManifest),
    "CodeInterpreter": TypeAdapter(CodeInterpreterManifest),
}


def parse_manifest(document: Mapping[str, Any]) -> Manifest:
    """The manifest in a loaded document. Raises InvalidFields (with pointers) or Invalid."""
    kind = document.get("kind")
    adapter = _BY_KIND.get(kind) if isinstance(kind, str) else None
    if adapter is None:
        raise Invalid(f"kind {kind!r} is not known here; it must be AgentRuntime or CodeInterpreter")
    try:
        parsed: Manifest = adapter.validate_python(document)
    except ValidationError as exc:
        raise InvalidFields.from_pydantic(exc, what=f"the {kind}") from exc
    return parsed


def load_document(text: bytes, *, as_yaml: bool) -> dict[str, Any]:
    """The one JSON or YAML document in `text`, plain and bounded. Raises Invalid, with line and column."""
    try:
        loaded = yaml.load(text, _Loader) if as_yaml else json.loads(text)  # noqa: S506  # it is a SafeLoader
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Invalid(f"the body is not one YAML document{where}: {exc.problem or exc.context}") from exc
    except yaml.YAMLError as exc:
        raise Invalid("the body is not YAML: it has characters that YAML does not allow") from exc
    except json.JSONDecodeError as exc:
        raise Invalid(f"the body is not JSON at line {exc.lineno}, column {exc.colno}: {exc.msg}") from exc
    except UnicodeDecodeError as exc:
        raise Invalid("the body is not UTF-8") from exc
    except (ValueError, RecursionError) as exc:  # numbers beyond Python's limits, bottomless nesting
        raise Invalid("the body cannot be read: it is nested too deeply or has an impossible value") from exc
    if not isinstance(loaded, dict):
        raise Invalid("the body must be an object (a mapping), such as a manifest")
    plain: dict[str, Any] = _Plain().copy(loaded, 0)
    return plain


class _Loader(yaml.SafeLoader):
    """Counts nodes as they are read: PyYAML needs 40 µs for each."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        if self._nodes > _NODES_MAX:
            raise _too_large()
        return super().compose_node(parent, index)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":  # merges of merges grow tenfold per line
                problem = "merge keys (<<) are not accepted: write the fields out"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        super().flatten_mapping(node)


def _too_large() -> Invalid:
    return Invalid(f"the document is too large: at most {_NODES_MAX} values, {_DEPTH_MAX} levels deep")


class _Plain:
    """Copies a document into what JSON can say, counting nodes: aliases are copied out and paid for."""

    def __init__(self) -> None:
        self._left = _NODES_MAX

    def copy(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEPTH_MAX:
            raise _too_large()
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise Invalid(f"the key {key!r} must be text; put it in quotes")
                _check_text(key)
            return {key: self.copy(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.copy(item, depth + 1) for item in value]
        if isinstance(value, date):  # YAML's timestamps, such as creationTimestamp
            return value.isoformat()
        if isinstance(value, float) and not math.isfinite(value):
            raise Invalid("the document has a number that is not finite")
        if isinstance(value, str):
            _check_text(value)
        if value is None or isinstance(value, str | int | float):
            return value
        raise Invalid(f"the document has a value of a kind that JSON has not: {type(value).__name__}")


def _check_text(text: str) -> None:
    if has_lone_surrogate(text):
        raise Invalid("the document has text with half of a surrogate pair, which no UTF-8 can hold")
