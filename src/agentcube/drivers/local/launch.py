"""Making one sandbox, step by step, in a worker thread. Whoever called destroys what a failure left."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from agentcube.drivers.local.cgroups import CgroupTree
from agentcube.drivers.local.identity import USER, Identity
from agentcube.drivers.local.images import ImageRoot
from agentcube.drivers.local.inside import kernel
from agentcube.drivers.local.inside.enclosure import SOURCES
from agentcube.drivers.local.inside.root import DEVICES
from agentcube.drivers.local.nurseries import Kit, Nurseries
from agentcube.drivers.local.nursery import Embryo
from agentcube.drivers.local.records import LOG, Record, Records
from agentcube.drivers.local.steps import failure
from agentcube.drivers.local.workspace import Workspaces
from agentcube.drivers.local.zygote import Zygote
from agentcube.errors import Conflict, Invalid, StartFailed
from agentcube.model.ids import SandboxId
from agentcube.model.sandbox import HostMount, SandboxSpec

WORKSPACE = "/workspace"
_BACKLOG = 1024
NOTHING = "none"
"""Fact `preload` of a sandbox without a fork server."""
_OWN = ("/", "/dev", "/proc", "/sys", "/workspace", "/tmp")  # noqa: S108  # inside


@dataclass(frozen=True, slots=True)
class Sockets:
    """Where a sandbox's two sockets are on the host's side."""

    picod: Path
    control: Path

    @classmethod
    def of(cls, folder: Path, id: SandboxId) -> Sockets:
        """The paths for sandbox `id` in the runtime directory."""
        return cls(folder / f"{id}.sock", folder / f"{id}.ctl")

    def remove(self) -> None:
        """Delete both. Idempotent."""
        for path in (self.picod, self.control):
            path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Launcher:
    """What every launch needs. `kit` is what it shares with the zygotes.

    `host_paths` are the directories that templates may use, real paths; None when that is somebody
    else's business.
    """

    kit: Kit
    nurseries: Nurseries
    cgroups: CgroupTree
    workspaces: Workspaces
    records: Records
    host_paths: Sequence[str] | None = None

    def launch(self, spec: SandboxSpec, image: ImageRoot, *, plain: bool = False) -> Record:
        """A sandbox whose PicoD starts; every step is on record before it is taken.

        Unless `plain`, it is born of its environment's zygote where that is warm.

        Raises:
            StartFailed, StartTimedOut, CapacityExhausted, Invalid, DriverFailed: names the step.
        """
        with ExitStack() as stack:
            # What a template lends lies outside of what an environment's zygote sees.
            plain = plain or (bool(spec.mounts) and not self.identity.lends)
            embryo = self.nurseries.take(image, plain=plain)
            stack.callback(embryo.birth.close)
            home = embryo.zygote.home
            record = Record(
                id=spec.id,
                labels=dict(spec.labels),
                pid=embryo.pid,
                start=embryo.start,
                uid_base=embryo.uid_base,
                cgroups=cgroup_paths(self.cgroups, spec.id),
                facts={"preload": ",".join(home.modules) if home else NOTHING, **self.facts()},
                ports=[p.port for p in spec.ports],
            )
            try:
                self.records.write(record)
            except BaseException:
                self.release(embryo.uid_base)  # on no record, so nobody else would
                raise
            try:
                return self._launch(_Descriptors(stack), record, embryo, spec, image)
            except OSError as exc:
                raise failure(f"start sandbox {spec.id}", exc, StartFailed) from exc

    def _launch(
        self, keep: _Descriptors, record: Record, embryo: Embryo, spec: SandboxSpec, image: ImageRoot
    ) -> Record:
        birth, home = embryo.birth, embryo.zygote.home
        cgroup = self.cgroups.make(spec.id, spec.resources, workspace_in_memory=not self._on_disk)
        cgroup.attach(record.pid)
        fds = self._sockets(keep, spec.id)
        log = self.records.folder(spec.id) / LOG
        fds["log"] = keep(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        for number, fd in enumerate(cgroup.user_fds()):
            fds[f"group:{number}"] = keep(fd)
        oom = cgroup.oom_fd()
        if oom is not None:
            fds["oom"] = keep(oom)
        mounts = _mounts(image, spec.mounts, self.host_paths)
        if self.identity.lends:
            fds.update(self._lend(keep, spec, image, mounts))
        elif home is not None:
            for number, mount in enumerate(mounts):
                mount["source"] = f"{SOURCES}/{number}"
        birth.go(self._request(spec, image, mounts, embryo.zygote), fds)
        if self._on_disk:  # made while the child builds its root
            birth.lend_workspace(keep(self._workspace(record, spec)))
        walls = birth.await_running()
        facts = {**record.facts, "landlock": str(walls["landlock"] or "none")}
        if not walls["fork_server"]:
            facts["preload"] = NOTHING
        record = replace(record, facts=facts, made=True)
        self.records.write(record)
        return record

    @property
    def identity(self) -> Identity:
        """How ids are mapped here."""
        return self.nurseries.bare.mode

    def facts(self) -> dict[str, str]:
        """What holds for every sandbox here."""
        return {
            "limits": self.cgroups.limits,
            "sleep": "frozen" if self.cgroups.freezes else "none",
            "quota": "hard",
            "workspace": "disk" if self._on_disk else "memory",
            "uid": self.identity.mode,
            "seccomp": "allow-list",
            "network": "none",
        }

    def reserve(self, base: int | None) -> None:
        """A sandbox on record has this range of user ids. Idempotent."""
        if base is not None:
            try:
                self.kit.ranges.reserve(base)
            except Conflict:
                pass  # it is on our record already

    def release(self, base: int | None) -> None:
        """A range is free again. Idempotent."""
        if base is not None:
            self.kit.ranges.release(base)

    @property
    def _on_disk(self) -> bool:
        return self.identity.lends and self.workspaces.mechanism == "disk"

    def _workspace(self, record: Record, spec: SandboxSpec) -> int:
        base = 0 if record.uid_base is None or "uids" in self.kit.off else record.uid_base
        owner = base + USER
        folder = self.records.folder(spec.id)
        made = self.workspaces.create(folder, spec.resources.workspace_bytes, owner, owner)
        assert made.mount_fd is not None
        return made.mount_fd

    def _sockets(self, keep: _Descriptors, id: SandboxId) -> dict[str, int]:
        paths = Sockets.of(self.kit.folder, id)
        paths.remove()
        fds = {}
        for name, path in (("listen", paths.picod), ("control", paths.control)):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
                sock.bind(str(path))
                sock.listen(_BACKLOG)
                fds[name] = keep(sock.detach())
        return fds

    def _lend(
        self,
        keep: _Descriptors,
        spec: SandboxSpec,
        image: ImageRoot,
        mounts: Sequence[dict[str, Any]],
    ) -> dict[str, int]:
        """Detached mounts of what the sandbox may see; it could not open their paths itself."""
        within = self._lower_within(spec)
        fds = {"lower": keep(_lent(str(image.lower), kernel.RDONLY, recursive=False, within=within))}
        for name in DEVICES:
            fds[f"device:{name}"] = keep(_lent(f"/dev/{name}", kernel.NOEXEC, recursive=False, nodev=False))
        for number, mount in enumerate(mounts):
            attributes = kernel.RDONLY if mount["read_only"] else 0
            fds[f"mount:{number}"] = keep(_lent(mount["source"], attributes, within=mount["within"]))
        return fds

    def _request(
        self, spec: SandboxSpec, image: ImageRoot, mounts: Sequence[dict[str, Any]], zygote: Zygote
    ) -> dict[str, Any]:
        """The fields that `inside/birth.py` reads."""
        return {
            "off": sorted(self.kit.off),
            "maps_root": self.identity.maps_root,
            "lent": self.identity.lends,
            "stage": zygote.stage,
            "hostname": "sandbox",
            "lower": str(image.lower) if zygote.home is None else f"{SOURCES}/lower",
            "lower_within": self._lower_within(spec),
            "mounts": list(mounts),
            "tmp_bytes": spec.resources.tmp_bytes,
            "workspace_bytes": 0 if self._on_disk else spec.resources.workspace_bytes,
            "entry": self.kit.entry,
            "fork_server": self.kit.fork_server if zygote.home else "",
            "config": self._config(spec, image),
        }

    def _lower_within(self, spec: SandboxSpec) -> list[str] | None:
        """Where the image has to be: only directories that a template names are not ours to trust."""
        named = spec.image.startswith("dir:") and self.host_paths is not None
        return list(self.host_paths or ()) if named else None

    def _config(self, spec: SandboxSpec, image: ImageRoot) -> dict[str, Any]:
        """PicoD's configuration, but for its descriptors."""
        return {
            "sandbox_id": spec.id,
            "public_keys": list(spec.public_keys),
            "workspace": WORKSPACE,
            "uid": USER,
            "gid": USER,
            "single_uid": not self.identity.maps_root,
            "env": {**image.environ(), **spec.env},
            "command": list(spec.command),
            "working_dir": spec.working_dir,
            "ports": [p.port for p in spec.ports],
            "limits": {
                "memory_bytes": spec.resources.memory_bytes,
                "pids_max": spec.resources.pids_max,
                "mode": self.cgroups.limits,
            },
            "version": _version(),
        }


class _Descriptors:
    """Closes what it is given when the launch ends, well or badly."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def __call__(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        return fd


@cache
def _version() -> str:
    return metadata.version("agentcube")


def _lent(
    path: str,
    attributes: int,
    *,
    recursive: bool = True,
    nodev: bool = True,
    within: Sequence[str] | None = None,
) -> int:
    fd = kernel.open_tree(path, f"open {path}", recursive=recursive, within=within)
    attributes |= kernel.NOSUID | (kernel.NODEV if nodev else 0)
    try:
        kernel.set_mount(fd, f"restrict {path}", attributes=attributes, recursive=recursive)
    except OSError:
        os.close(fd)
        raise
    return fd


def _mounts(
    image: ImageRoot, wanted: Sequence[HostMount], host_paths: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The image's binds and the template's mounts, as the request has them."""
    found: list[tuple[str, str, bool, Sequence[str] | None]]
    found = [(str(b.source), b.target, True, None) for b in image.binds]
    found += [(m.source, os.path.normpath(m.target), m.read_only, host_paths) for m in wanted]
    return [
        {
            "source": source,
            "target": target,
            "read_only": read_only,
            "folder": os.path.isdir(source),
            "within": within,
        }
        for source, target, read_only, within in found
    ]


def cgroup_paths(tree: CgroupTree, id: SandboxId) -> dict[str, str]:
    """Where the groups of sandbox `id` are, or will be: goes on record before they are made."""
    return {h.key: str(h.base / id) for h in tree.hierarchies}


def check_mounts(mounts: Sequence[HostMount]) -> None:
    """Raises Invalid for a mount that cannot be: says which and why."""
    for mount in mounts:
        target = os.path.normpath(mount.target)
        if not mount.target.startswith("/") or target.startswith("//") or target in _OWN:
            raise Invalid(
                f"mount target {mount.target!r}: has to be an absolute path other than {', '.join(_OWN)}"
            )
        if target.startswith(("/dev/", "/proc/", "/sys/")):
            raise Invalid(f"mount target {mount.target!r}: /dev, /proc and /sys belong to the sandbox")
        if not os.path.isabs(mount.source) or not os.path.exists(mount.source):
            raise Invalid(f"mount source {mount.source!r}: no such file or directory on this machine")
