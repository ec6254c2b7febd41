"""The control group file systems as this machine has them: where they are mounted, who we are in
them, and which part of them is ours to use. It knows nothing of sandboxes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Self

from agentcube.errors import DriverFailed

SERVER_LEAF = "agentcube-server"
CONTROLLERS = frozenset({"cpu", "memory", "pids", "io"})
"""What limits sandboxes."""

_LIMITED = ("memory", "pids")
_GONE = frozenset({errno.ENOENT, errno.ENODEV, errno.ESRCH})


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """One tree of groups. `base` is a directory in it, `controllers` are those it can use there."""

    version: Literal[1, 2]
    controllers: frozenset[str]
    base: Path

    @property
    def key(self) -> str:
        """What a handle says of it: `2:memory,pids`."""
        return f"{self.version}:{','.join(sorted(self.controllers))}"

    @classmethod
    def parse(cls, key: str, base: Path) -> Self:
        """The hierarchy a handle speaks of."""
        version, _, names = key.partition(":")
        return cls(2 if version == "2" else 1, frozenset(filter(None, names.split(","))), base)

    @property
    def leaves(self) -> bool:
        """Whether a sandbox has the groups `picod` and `user` here, or only one for both."""
        return any(name in self.controllers for name in _LIMITED)

    @property
    def freezes(self) -> bool:
        """Whether its groups have a freezer."""
        return self.version == 2 or "freezer" in self.controllers

    def child(self, name: str) -> Self:
        """The same tree at a directory below."""
        return replace(self, base=self.base / name)

    def leaf(self, name: str) -> Path:
        """Where the processes of `picod` or `user` live."""
        return self.base / name if self.leaves else self.base

    def share(self, controllers: Iterable[str]) -> None:
        """Let the groups below `base` use those of `controllers` that it has (v2)."""
        wanted = sorted(self.controllers.intersection(controllers))
        if wanted:
            text = " ".join(f"+{name}" for name in wanted)
            write(self.base / "cgroup.subtree_control", text, f"share {', '.join(wanted)}")


def write(path: Path, text: str, step: str, *, gone_ok: bool = False) -> None:
    """Write a control file. `DriverFailed` names the step, the file and the kernel's answer."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as exc:
        if gone_ok and is_gone(exc):
            return
        raise DriverFailed(f"cannot {step}: {path}: {exc.strerror}") from exc


def is_gone(exc: OSError) -> bool:
    """Whether the group was removed under our hands."""
    return exc.errno in _GONE


def read_int(path: Path) -> int:
    """A control file that holds one number."""
    return int(path.read_text())


def read_table(path: Path) -> dict[str, int]:
    """A control file of `name number` lines."""
    rows = (line.split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def detect(folder: str) -> tuple[list[Hierarchy], Path | None]:
    """The hierarchies in which `folder` could be made, based there, and the group we left for it."""
    found: list[Hierarchy] = []
    moved_from: Path | None = None
    mounts = (
        parse_mounts(Path("/proc/self/mountinfo").read_text()) if os.path.exists("/proc/self/cgroup") else []
    )
    own = own_groups(Path("/proc/self/cgroup").read_text()) if mounts else {}
    for mount in (m for m in mounts if m.version == 2):
        usable, moved_from = use_v2(mount, own.get("", "/"), folder)
        if usable is not None:
            found.append(usable)
            break
    have = {name for h in found for name in h.controllers}
    for mount in (m for m in mounts if m.version == 1):
        wanted = _wanted_v1(mount, have, with_v2=bool(found))
        if wanted and (usable := _use_v1(mount, own, wanted, folder)) is not None:
            found.append(usable)
            have |= wanted
    return found, moved_from


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted tree of groups, or the part of one that a container sees."""

    version: Literal[1, 2]
    controllers: frozenset[str]
    root: str  # the group that appears at `path`: not "/" in a container without its own namespace
    path: Path

    def place(self, group: str) -> Path:
        """Where `group` (from /proc/self/cgroup) lies in this mount."""
        inside = group.removeprefix(self.root) if self.root != "/" else group
        return self.path / inside.strip("/")


def parse_mounts(mountinfo: str) -> list[Mount]:
    """Group file systems in a mountinfo text (proc_pid_mountinfo(5))."""
    found: list[Mount] = []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields, (fstype, _source, options) = left.split(), [*right.split(), "", "", ""][:3]
        if fstype == "cgroup2":
            found.append(Mount(2, frozenset(), fields[3], Path(fields[4])))
        elif fstype == "cgroup":
            found.append(Mount(1, frozenset(options.split(",")), fields[3], Path(fields[4])))
    return found


def own_groups(text: str) -> dict[str, str]:
    """Our group by controller ("" for v2), from /proc/self/cgroup."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        _, names, path = line.split(":", 2)
        groups.update(dict.fromkeys(names.split(","), path))
    return groups


def _wanted_v1(mount: Mount, have: set[str], *, with_v2: bool) -> set[str]:
    """Controllers worth a directory per sandbox: a v2 tree already freezes, kills and counts CPU time."""
    wanted = {"cpu", "memory", "pids"} | (set() if with_v2 else {"freezer", "cpuacct"})
    if any((mount.path / name).exists() for name in ("blkio.bfq.weight", "blkio.weight")):
        wanted.add("blkio")
    return (wanted & mount.controllers) - have


def _use_v1(mount: Mount, own: dict[str, str], wanted: set[str], folder: str) -> Hierarchy | None:
    group = next((own[name] for name in wanted if name in own), "/")
    for base in dict.fromkeys((mount.path, mount.place(group))):
        try:
            make(base / folder)
        except OSError:
            continue
        return Hierarchy(1, frozenset(wanted), base / folder)
    return None


def use_v2(
    mount: Mount, own: str, folder: str, controllers: frozenset[str] = CONTROLLERS
) -> tuple[Hierarchy | None, Path | None]:
    """`folder` in a v2 tree, with those of `controllers` it can have; and our group, when we had to leave it."""
    ours = mount.place(own)
    for base in dict.fromkeys((mount.path, ours)):
        moved_from: Path | None = None
        try:
            available = set((base / "cgroup.controllers").read_text().split())
            wanted = controllers & available
            make(base / folder)
            try:
                Hierarchy(2, wanted, base).share(wanted)
            except DriverFailed:
                if base != ours:
                    continue
                # Our group has processes, so it cannot share out controllers; without us it may.
                make(base / SERVER_LEAF)
                (base / SERVER_LEAF / "cgroup.procs").write_text("0")
                moved_from = base
                Hierarchy(2, wanted, base).share(wanted)
            here = base
            for part in Path(folder).parts:
                here /= part
                Hierarchy(2, wanted, here).share(wanted)
        except (OSError, DriverFailed):
            _undo(base, folder, moved_from)
            continue
        return Hierarchy(2, wanted, base / folder), moved_from
    return None, None


def _undo(base: Path, folder: str, moved_from: Path | None) -> None:
    """Leave a group we could not use as it was."""
    try:
        if moved_from is not None:
            (moved_from / "cgroup.procs").write_text("0")
            (moved_from / SERVER_LEAF).rmdir()
        for dir in (base / folder, (base / folder).parent):
            dir.rmdir()
    except OSError:
        pass


def make(dir: Path) -> None:
    """Make a directory and its parents, against another server that removes empty ones meanwhile."""
    for _ in range(10):
        try:
            dir.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError:
            continue
        return
    dir.mkdir(parents=True, exist_ok=True)
