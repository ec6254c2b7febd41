"""The file system of a sandbox: an overlay that gains mount points and is then read-only.

Built in the sandbox's own mount namespace below a staging directory, then pivoted into. What the
machine lends comes as detached mounts; nothing here opens a path of the machine but the stage.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentcube.drivers.local.inside import kernel
from agentcube.drivers.local.inside.kernel import NODEV, NOEXEC, NOSUID, RDONLY

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
"""Device nodes lent by the machine: a user namespace cannot make its own."""

_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

_MASKED_FILES = (
    "cmdline config.gz consoles devices diskstats dma execdomains fb interrupts iomem ioports kallsyms kcore "
    "key-users keys kmsg kpagecgroup kpagecount kpageflags latency_stats locks mdstat misc modules mtrr "
    "pagetypeinfo partitions sched_debug schedstat slabinfo softirqs swaps sysrq-trigger timer_list "
    "timer_stats vmallocinfo vmstat zoneinfo buddyinfo"
).split()
"""Files of /proc about the machine rather than about the sandbox, or that act on the machine."""

_MASKED_FOLDERS = "acpi asound bus driver dynamic_debug fs irq pressure scsi tty".split()
_READ_ONLY_FOLDERS = ("sys",)

FOLDERS = ("/proc", "/dev", "/tmp", "/sys", "/workspace")
"""What every root has, whether its image has it or not."""

_TERMINALS = 64
"""Most pseudo-terminals of one sandbox: the kernel has 4096 for all together (pty(7), kernel.pty.max)."""


@dataclass(frozen=True)
class Mount:
    """A detached mount and where it goes. `folder` says what to make when the target does not exist."""

    fd: int
    target: str
    folder: bool = True


@dataclass(frozen=True)
class Plan:
    """What the root is made of. `lower` is a detached mount of the image."""

    stage: str
    lower: int
    mounts: tuple[Mount, ...]
    devices: dict[str, int]
    tmp_bytes: int
    workspace_bytes: int  # of a workspace in memory; 0 when its mount comes later
    uid: int
    gid: int


def build(plan: Plan, workspace: Callable[[], int]) -> None:
    """Make the root and change into it. The calling process must be process 1 of its pid namespace.

    `workspace` gives the detached mount of a workspace on disk; it is called last, and may wait.
    """
    targets = [(m.target, m.folder) for m in plan.mounts if not _is_nested(m)]
    overlay(plan.stage, plan.lower, [(name, True) for name in FOLDERS] + targets)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        _refuse_links()
        mounts = sorted(plan.mounts, key=lambda m: m.target.count("/"))
        for mount in mounts:
            if not _is_nested(mount):
                attach_in(here, mount.fd, mount.target)
        memory_mounts(here, plan.tmp_bytes)
        devices(here, plan.devices)
        _terminals(here)
        _proc(here)
        attach_in(here, _memory_workspace(plan) if plan.workspace_bytes else workspace(), "/workspace")
        for mount in mounts:
            if _is_nested(mount):
                _make_in(here, mount.target, folder=mount.folder)
                attach_in(here, mount.fd, mount.target)
    finally:
        os.close(here)
    enter()


def overlay(stage: str, lower: int, targets: Sequence[tuple[str, bool]]) -> None:
    """Cut this mount namespace off the machine's, put an overlay over the image `lower`, and change into it.

    `targets` are the mount points it is to have, and whether each is a folder.
    """
    kernel.set_private("cut off the machine's mounts")
    scratch = kernel.new_mount(
        "tmpfs",
        {"size": "1m", "nr_inodes": "4096", "mode": "0755"},
        NOSUID | NODEV,
        "mount the scratch space",
    )
    attach_at(scratch, stage, "place the scratch space")
    os.chdir(stage)
    for name in ("lower", "upper", "work", "root"):
        os.mkdir(name)
    attach_at(lower, "lower", "place the image")
    _make_targets(targets)
    options = {"lowerdir": "lower", "upperdir": "upper", "workdir": "work", "userxattr": None}
    root = kernel.new_mount("overlay", options, NOSUID | NODEV, "mount the root")
    attach_at(root, "root", "place the root")
    os.chdir("root")


def enter() -> None:
    """Make the working directory, which is a mount, read-only, and the root."""
    seal = os.open(".", os.O_PATH | os.O_CLOEXEC)
    kernel.set_mount(seal, "make the root read-only", attributes=RDONLY, recursive=False)
    os.close(seal)
    kernel.pivot_to_cwd("change the root")


def attach_at(mount: int, path: str, step: str) -> None:
    """Put a detached mount at `path` as this process sees it; closes `mount`."""
    target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        kernel.attach(mount, target, step)
    finally:
        os.close(target)
        os.close(mount)


def attach_in(root: int, mount: int, path: str) -> None:
    """Put a detached mount at `path` below the descriptor `root`; closes `mount`."""
    target = kernel.open_in(root, path, f"find {path} in the sandbox")
    try:
        kernel.attach(mount, target, f"mount {path}")
    finally:
        os.close(target)
        os.close(mount)


def _is_nested(mount: Mount) -> bool:
    """Whether it goes into a file system that starts empty: its mount point is made in there."""
    return mount.target.startswith(("/workspace/", "/tmp/"))  # the sandbox's own


def _make(path: str, *, folder: bool) -> None:
    os.makedirs(path if folder else os.path.dirname(path), mode=0o755, exist_ok=True)
    if not folder:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _make_in(root: int, target: str, *, folder: bool) -> None:
    """Make a mount point below a workspace or /tmp, maybe in a mount where somebody has put links.

    Nothing is made outside of `root`: the root directory of this process is still the machine's.
    """
    parts = [part for part in target.split("/") if part]
    step = f"make {target} in the sandbox"
    for depth in range(1, len(parts) + 1):
        try:
            os.close(kernel.open_in(root, "/".join(parts[:depth]), step))
            continue
        except kernel.StepFailed as exc:
            if exc.errno != errno.ENOENT:
                raise
        parent = kernel.open_in(root, "/".join(parts[: depth - 1]) or ".", step)
        try:
            if folder or depth < len(parts):
                os.mkdir(parts[depth - 1], 0o755, dir_fd=parent)
            else:
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                os.close(os.open(parts[depth - 1], flags, 0o644, dir_fd=parent))
        finally:
            os.close(parent)


def _refuse_links() -> None:
    """What follows makes things in /dev and /proc by path, which a link would lead onto the machine."""
    for name in ("dev", "proc"):
        if not stat.S_ISDIR(os.lstat(name).st_mode):
            raise kernel.StepFailed(errno.ENOTDIR, f"use the image's /{name}")


def _make_targets(targets: Sequence[tuple[str, bool]]) -> None:
    """Make the mount points that the image lacks, in the overlay's upper layer."""
    lower = os.open("lower", os.O_PATH | os.O_CLOEXEC)
    try:
        for target, folder in targets:
            _make_target(lower, target, folder=folder)
    finally:
        os.close(lower)


def _make_target(lower: int, target: str, *, folder: bool) -> None:
    parts = [part for part in target.split("/") if part]
    found, known = kernel.open_deepest(lower, parts, f"find {target} in the image")
    if known == len(parts):
        os.close(found)
        return
    # Where symlinks of the image lead: the same place has to be made in the layer above it.
    base = os.readlink(f"/proc/self/fd/{lower}")
    real = os.path.relpath(os.readlink(f"/proc/self/fd/{found}"), base)
    os.close(found)
    if real.split("/")[0] == "..":  # somebody moved it out of the image just now
        raise kernel.StepFailed(errno.ESTALE, f"find {target} in the image")
    _make(os.path.join("upper", real, *parts[known:]), folder=folder)


def _tmpfs(size: int, mode: str, step: str, attributes: int, **more: str) -> int:
    inodes = max(1024, size // 4096)  # an empty file costs kernel memory too
    options = {"size": str(size), "nr_inodes": str(inodes), "mode": mode, **more}
    return kernel.new_mount("tmpfs", options, attributes, step)


def _memory_workspace(plan: Plan) -> int:
    owner = {"uid": str(plan.uid), "gid": str(plan.gid)}
    return _tmpfs(plan.workspace_bytes, "0755", "mount the workspace", NOSUID | NODEV, **owner)


def memory_mounts(root: int, tmp_bytes: int) -> None:
    """/tmp and /dev/shm of that size, and an empty /dev."""
    attach_in(root, _tmpfs(tmp_bytes, "1777", "mount /tmp", NOSUID | NODEV), "/tmp")
    dev = kernel.new_mount(
        "tmpfs", {"size": "64k", "nr_inodes": "64", "mode": "0755"}, NOSUID | NOEXEC, "mount /dev"
    )
    attach_in(root, dev, "/dev")
    os.mkdir("dev/shm")
    os.mkdir("dev/pts")
    attach_in(root, _tmpfs(tmp_bytes, "1777", "mount /dev/shm", NOSUID | NODEV | NOEXEC), "/dev/shm")


def devices(root: int, lent: dict[str, int]) -> None:
    """Fill /dev with these device nodes, as detached mounts by name, and the usual links."""
    for name, fd in lent.items():
        os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        attach_in(root, fd, f"/dev/{name}")
    for name, target in _LINKS.items():
        os.symlink(target, f"dev/{name}")


def _terminals(root: int) -> None:
    # No `gid=tty`: that group may have no number in here.
    options = {"newinstance": None, "ptmxmode": "0666", "mode": "0620", "max": str(_TERMINALS)}
    pts = kernel.new_mount("devpts", options, NOSUID | NOEXEC, "mount /dev/pts")
    attach_in(root, pts, "/dev/pts")


def _is_open_to_others(path: str) -> bool:
    """Files that only their owner may open need no mask: the machine's root has no id in here."""
    try:
        return os.stat(path).st_mode & 0o006 != 0
    except FileNotFoundError:
        return False


def _proc(root: int) -> None:
    # Not hidepid: PicoD has to find a process that made itself undumpable, in order to kill it. What
    # is readable of another's /proc/PID without hidepid (names, arguments, states) belongs to this
    # sandbox; memory, environment and descriptors take ptrace rights, which PicoD grants nobody.
    proc = kernel.new_mount("proc", {}, NOSUID | NODEV | NOEXEC, "mount /proc")
    attach_in(root, proc, "/proc")
    for name in _MASKED_FILES:
        if _is_open_to_others(f"proc/{name}"):
            attach_in(
                root, kernel.open_tree("dev/null", f"mask /proc/{name}", recursive=False), f"/proc/{name}"
            )
    for name in _MASKED_FOLDERS:
        if os.path.isdir(f"proc/{name}"):
            empty = kernel.new_mount(
                "tmpfs", {"size": "4k", "nr_inodes": "2", "mode": "0555"}, RDONLY, f"mask /proc/{name}"
            )
            attach_in(root, empty, f"/proc/{name}")
    for name in _READ_ONLY_FOLDERS:
        copy = kernel.open_tree(f"proc/{name}", f"copy /proc/{name}", recursive=False)
        kernel.set_mount(
            copy, f"make /proc/{name} read-only", attributes=RDONLY | NOSUID | NODEV | NOEXEC, recursive=False
        )
        attach_in(root, copy, f"/proc/{name}")
