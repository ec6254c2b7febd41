"""Manifests into templates: what of a manifest this machine honours, and a clear refusal of the rest.

Nothing that would change what a sandbox is or may do is dropped in silence; what only places pods
in a cluster (labels, probes, scheduler, pull secrets) is kept in the manifest and means nothing here.
"""

from __future__ import annotations

import os.path
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from agentcube.model.sandbox import HostMount, Isolation, Port, Resources
from agentcube.model.template import AuthMode, Kind, Template, TemplateKey, WarmPool
from agentcube.wire.fields import check_env, dns_label
from agentcube.wire.manifests import (
    AgentRuntimeManifest,
    CodeInterpreterManifest,
    Container,
    EnvVar,
    Manifest,
    ResourceRequirements,
    TargetPort,
    Volume,
    WarmPoolSpec,
    parse_manifest,
)
from agentcube.wire.problems import FieldProblem, InvalidFields, pointer
from agentcube.wire.quantities import parse_bytes, parse_count, parse_cpu_millis

HOST_IMAGE = "host"
_SOURCES = ("dir:", "tar:")
_CONTAINER = "/spec/podTemplate/spec/containers/0"
_TIERS = tuple(Isolation)  # weakest first
_RESOURCES = {
    "cpu": ("cpu_millis", parse_cpu_millis),
    "memory": ("memory_bytes", parse_bytes),
    "ephemeral-storage": ("workspace_bytes", parse_bytes),
    "pids": ("pids_max", parse_count),
}


@dataclass(frozen=True, slots=True)
class TemplatePolicy:
    """What this machine lets templates take from it, and how strongly it can isolate.

    `host_paths`: nothing below any other directory. `isolation`: the strongest tier there is here.
    """

    host_paths: tuple[Path, ...] = ()
    isolation: Isolation = Isolation.NAMESPACE

    def allows(self, path: str) -> bool:
        """Whether `path`, with its links resolved, lies below an allowed directory."""
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(allowed)) for allowed in self.host_paths)


def template_of(document: Mapping[str, Any], key: TemplateKey, policy: TemplatePolicy) -> Template:
    """The template that a manifest, put at `key`, describes.

    Raises:
        InvalidFields: with a pointer to each field that is wrong or that this machine cannot honour.
        Invalid: the document is no manifest of ours.
    """
    document = _addressed(document, key)
    manifest = parse_manifest(document)
    reading = _Reading(policy)
    template = reading.template(manifest, document, key)
    if reading.wrong:
        raise InvalidFields(reading.wrong, what=f"{key}")
    return template


def _addressed(document: Mapping[str, Any], key: TemplateKey) -> dict[str, Any]:
    """The document with kind and metadata that agree with the address it was put at."""
    metadata = document.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InvalidFields([FieldProblem("/metadata", "must be an object")], what="the manifest")
    wrong = [
        FieldProblem(at, f"is {given!r}, but the address says {wanted!r}")
        for at, given, wanted in (
            ("/kind", document.get("kind", key.kind.value), key.kind.value),
            ("/metadata/name", metadata.get("name", key.name), key.name),
            ("/metadata/namespace", metadata.get("namespace", key.namespace), key.namespace),
        )
        if given != wanted
    ]
    if wrong:
        raise InvalidFields(wrong, what="the manifest")
    named = {**metadata, "name": key.name, "namespace": key.namespace}
    return {**document, "kind": key.kind.value, "metadata": named}


class _Reading:
    """Reads one manifest, collecting everything that is wrong with it."""

    def __init__(self, policy: TemplatePolicy) -> None:
        self._policy = policy
        self.wrong: list[FieldProblem] = []

    def template(self, manifest: Manifest, document: dict[str, Any], key: TemplateKey) -> Template:
        if isinstance(manifest, AgentRuntimeManifest):
            fields = self._agent_runtime(manifest)
            pool = manifest.spec.warm_pool or WarmPoolSpec()
        else:
            fields = self._code_interpreter(manifest)
            size = manifest.spec.warm_pool_size
            pool = manifest.spec.warm_pool or WarmPoolSpec(min=0, max=size, target=size)
        spec = manifest.spec
        least, aim, most = pool.sizes()
        if spec.network is not None and spec.network.egress:
            self._refuse("/spec/network/egress", "sandboxes have no network on this machine; leave it empty")
        tier = Isolation.NAMESPACE if spec.isolation in (None, "any") else Isolation(spec.isolation)
        if spec.isolation and _TIERS.index(tier) > _TIERS.index(self._policy.isolation):
            self._refuse("/spec/isolation", f"this machine has {self._policy.isolation}, not {tier}")
        if spec.volumes:
            self._refuse("/spec/volumes", "there are no named volumes on this machine")
        return Template(
            key=key,
            manifest={name: value for name, value in document.items() if name != "status"},
            environment="default" if spec.environment is None else spec.environment,
            isolation=tier,
            session_timeout=spec.idle_timeout,
            max_session_duration=spec.ttl,
            suspend_after=spec.suspend_after,
            warm_pool=WarmPool(min=least, target=aim, max=most),
            **fields,
        )

    def _agent_runtime(self, manifest: AgentRuntimeManifest) -> dict[str, Any]:
        pod = manifest.spec.pod_template.spec
        box = pod.containers[0]
        if len(pod.containers) > 1:
            self._refuse("/spec/podTemplate/spec/containers/1", "a sandbox of this machine is one container")
        if pod.init_containers:
            self._refuse("/spec/podTemplate/spec/initContainers", "this machine has no init containers")
        if box.env_from:
            self._refuse(f"{_CONTAINER}/envFrom", "this machine has no config maps or secrets; use env")
        return {
            "image": self._image(box.image, f"{_CONTAINER}/image"),
            "command": (*(box.command or ()), *(box.args or ())),
            "working_dir": self._absolute(box.working_dir, f"{_CONTAINER}/workingDir"),
            "env": self._env(box.env, f"{_CONTAINER}/env"),
            "ports": self._ports(manifest.spec.target_port, "/spec/targetPort"),
            "mounts": self._mounts(box, pod.volumes or []),
            "resources": self._resources(box.resources, f"{_CONTAINER}/resources/limits"),
        }

    def _code_interpreter(self, manifest: CodeInterpreterManifest) -> dict[str, Any]:
        spec, box = manifest.spec, manifest.spec.template
        own_server = spec.auth_mode == "none"
        return {
            "image": self._interpreter_image(box.image),
            # With authMode picod, command and args are those of the image's PicoD; here PicoD is ours.
            "command": (*(box.command or ()), *(box.args or ())) if own_server else (),
            "env": self._env(box.environment, "/spec/template/environment"),
            "ports": self._ports(spec.ports or [], "/spec/ports") if own_server else (),
            "resources": self._resources(box.resources, "/spec/template/resources/limits"),
            "auth_mode": AuthMode(spec.auth_mode),
        }

    def _interpreter_image(self, image: str) -> str:
        """An image called `picod`, of whatever registry, is a Python with PicoD: what `host` is here."""
        name = image.rpartition("/")[2].partition("@")[0].partition(":")[0]
        return HOST_IMAGE if name == "picod" else self._image(image, "/spec/template/image")

    def _image(self, image: str, at: str) -> str:
        if image in ("", HOST_IMAGE):
            return HOST_IMAGE
        source = image[4:]
        if not image.startswith(_SOURCES):
            self._refuse(
                at,
                f"{image[:200]!r} is an image of a registry, which this machine's driver does not have yet; "
                "use host, dir:/path or tar:/path",
            )
        elif self._absolute(source, at):
            self._allowed(source, at)
        return image

    def _allowed(self, path: str, at: str) -> None:
        if not self._policy.allows(path):
            self._refuse(
                at, f"{path[:200]!r} is not open to templates; start the server with --allow-host-path DIR"
            )

    def _absolute(self, path: str, at: str) -> str:
        if path and (not path.startswith("/") or ".." in PurePosixPath(path).parts or "\0" in path):
            self._refuse(at, f"{path[:200]!r} must be an absolute path without '..'")
            return ""
        return path

    def _ports(self, ports: Sequence[TargetPort], at: str) -> tuple[Port, ...]:
        seen: set[str] = set()
        for index, port in enumerate(ports):
            prefix = port.path_prefix or "/"
            if port.protocol == "HTTPS":
                self._refuse(f"{at}/{index}/protocol", "inside a sandbox it is HTTP; TLS ends at the Router")
            if prefix in seen:
                self._refuse(f"{at}/{index}/pathPrefix", f"{prefix!r} is there twice")
            seen.add(prefix)
        return tuple(
            Port(
                port=p.port,
                path_prefix=p.path_prefix or "/",
                name=p.name,
                passes_credentials=p.pass_credentials,
            )
            for p in ports
        )

    def _env(self, variables: Sequence[EnvVar] | None, at: str) -> dict[str, str]:
        for index, variable in enumerate(variables or ()):
            if variable.value_from is not None:
                self._refuse(f"{at}/{index}/valueFrom", "this machine has no such sources; give a value")
        env = {v.name: v.value or "" for v in variables or ()}
        try:
            return check_env(env)
        except ValueError as exc:
            self._refuse(at, str(exc))
            return {}

    def _resources(self, given: ResourceRequirements | None, at: str) -> Resources:
        values: dict[str, int] = {}
        for name, quantity in ((given.limits if given else None) or {}).items():
            if name not in _RESOURCES:
                self._refuse(at + pointer([name]), f"this machine knows {', '.join(_RESOURCES)}")
                continue
            field, parse = _RESOURCES[name]
            try:
                values[field] = parse(quantity)
            except ValueError as exc:
                self._refuse(at + pointer([name]), str(exc))
        return Resources(**values)

    def _mounts(self, box: Container, volumes: Sequence[Volume]) -> tuple[HostMount, ...]:
        sources = {v.name: (index, v) for index, v in enumerate(volumes)}
        mounts = []
        for at_index, mount in enumerate(box.volume_mounts or ()):
            at = f"{_CONTAINER}/volumeMounts/{at_index}"
            index, volume = sources.get(mount.name, (0, None))
            if volume is None:
                self._refuse(f"{at}/name", f"there is no volume {mount.name!r}")
                continue
            where = f"/spec/podTemplate/spec/volumes/{index}"
            if volume.host_path is None:
                self._refuse(where, "this machine has only hostPath volumes")
                continue
            if mount.sub_path:
                self._refuse(f"{at}/subPath", "name the directory in the volume's hostPath instead")
            source = self._absolute(volume.host_path.path, f"{where}/hostPath/path")
            target = self._absolute(mount.mount_path, f"{at}/mountPath")
            if not source or target in ("", "/"):
                self._refuse(f"{at}/mountPath", "must be a directory of its own, below '/'")
                continue
            self._allowed(source, f"{where}/hostPath/path")
            mounts.append(HostMount(source=source, target=target, read_only=mount.read_only))
        return tuple(mounts)

    def _refuse(self, at: str, message: str) -> None:
        self.wrong.append(FieldProblem(at, message))


def key_of(kind: Kind, namespace: str, name: str) -> TemplateKey:
    """A template's address from text. Raises InvalidFields for names that are no DNS labels."""
    wrong = []
    for at, text in (("/namespace", namespace), ("/name", name)):
        try:
            dns_label(text)
        except ValueError as exc:
            wrong.append(FieldProblem(at, str(exc)))
    if wrong:
        raise InvalidFields(wrong, what="the template's address")
    return TemplateKey(kind, namespace, name)
