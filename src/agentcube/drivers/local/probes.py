"""Trials of what this kernel allows us, each run in a process of its own: `python -m … NAME`.

A trial prints what it found and ends with 0, or raises OSError: what the kernel refused, with the
step's name. It leaves nothing behind but its own death. `doctor` runs them; nobody else should.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agentcube.drivers.local import identity, uidrange
from agentcube.drivers.local.cgroups import CgroupTree, SandboxCgroup
from agentcube.drivers.local.inside import kernel, landlock, seccomp
from agentcube.drivers.local.workspace import Workspaces
from agentcube.errors import AgentCubeError
from agentcube.model.sandbox import Resources

NAMESPACES = {
    "mount": kernel.CLONE_NEWNS,
    "pid": kernel.CLONE_NEWPID,
    "network": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
    "uts": kernel.CLONE_NEWUTS,
    "cgroup": kernel.CLONE_NEWCGROUP,
}


def user_namespace() -> str:
    """A user namespace whose powers are real: some systems allow the namespace and deny them."""
    _enter_user_namespace()
    kernel.unshare(kernel.CLONE_NEWNS, "use its powers")
    kernel.set_private("use its powers")
    return "created, with powers inside"


def namespaces() -> str:
    """Each other kind of namespace, inside a user namespace."""
    _enter_user_namespace()
    refused = []
    for name, flag in NAMESPACES.items():
        try:
            kernel.unshare(flag, f"{name} namespace")
        except OSError as exc:
            refused.append(f"{name} ({exc.strerror})")
    if refused:
        raise OSError(0, f"refused: {', '.join(refused)}")
    return ", ".join(NAMESPACES)


def uid_range() -> str:
    """User ids beside our own, mapped as for a sandbox: by us as root, else by newuidmap."""
    mode = identity.detect()
    if mode.mode == "single":
        raise OSError(0, "no newuidmap, or no range for this user in /etc/subuid and /etc/subgid")
    base = uidrange.UidRanges.detect().allocate() if mode.lends else None
    _in_child_namespace(lambda pid: identity.map_ids(mode, pid, base))
    if mode.lends:
        return f"{uidrange.RANGE_SIZE} ids for each sandbox, from {base} up"
    return f"subordinate ids from {mode.subordinate[0]} up"


def mount_api() -> str:
    """Detached mounts: fsopen, open_tree, mount_setattr, move_mount."""
    with _tmpfs(kernel.NOSUID | kernel.NODEV) as stage:
        copy = kernel.open_tree(stage, "copy a mount")
        kernel.set_mount(copy, "make a mount read-only", attributes=kernel.RDONLY)
    return "fsopen, open_tree, mount_setattr, move_mount"


def overlay() -> str:
    """An overlay mounted inside a user namespace."""
    with _tmpfs(0) as stage:
        for name in ("lower", "upper", "work"):
            os.mkdir(f"{stage}/{name}")
        options = {"lowerdir": f"{stage}/lower", "upperdir": f"{stage}/upper", "workdir": f"{stage}/work"}
        os.close(kernel.new_mount("overlay", {**options, "userxattr": None}, 0, "mount an overlay"))
    return "mounted in a user namespace"


def proc() -> str:
    """A /proc of its own: refused where the machine's (a container's) has parts covered."""
    _enter_user_namespace()
    flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWPID
    kernel.unshare(flags, "mount and pid namespaces")

    def mount() -> None:
        os.close(kernel.new_mount("proc", {}, 0, "mount proc"))

    _in_fork(mount)
    return "a /proc of its own"


def landlock_version() -> str:
    """Landlock, as a version."""
    version = landlock.abi()
    if version == 0:
        raise OSError(0, "not in this kernel, or not among its security modules")
    return f"ABI {version}"


def seccomp_filter() -> str:
    """Our own filter, installed, and seen to refuse."""
    kernel.prctl("set no_new_privs", kernel.PR_SET_NO_NEW_PRIVS, 1)
    seccomp.confine(seccomp.assemble(seccomp.instructions()))
    try:
        kernel.unshare(kernel.CLONE_NEWUTS, "")
    except OSError:
        return "installed; unshare is refused under it"
    raise OSError(0, "installed, but it refuses nothing")


def cgroups() -> str:
    """Groups with limits for a process of ours: made, used, killed, removed."""
    with _group() as (tree, group):
        freezes = group.can_freeze()
        if freezes:
            group.freeze()
            group.thaw()
        controllers = ", ".join(sorted(tree.controllers)) or "no controllers"
        kind = f"{tree.version} ({controllers})"
    if tree.limits != "cgroup":
        raise OSError(0, f"{kind}: memory and process counts cannot be limited")
    limits = "memory, processes" + (", CPU" if "cpu" in tree.controllers else "")
    return f"{kind}: limits of {limits}; {'freezes and kills' if freezes else 'kills, does not freeze'}"


def workspace(folder: str = "") -> str:
    """A workspace on a loop device, made and dropped; in `folder`, whose file system matters."""
    with tempfile.TemporaryDirectory(prefix="agentcube-probe-", dir=folder or None) as dir:
        reason = Workspaces(Path(dir)).reason
    if reason:
        raise OSError(0, reason)
    return "on disk: a sparse ext4 image for each sandbox, hard quota"


TRIALS: dict[str, Callable[..., str]] = {
    trial.__name__: trial
    for trial in (
        user_namespace,
        namespaces,
        uid_range,
        mount_api,
        overlay,
        proc,
        landlock_version,
        seccomp_filter,
        cgroups,
        workspace,
    )
}


def _enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    kernel.unshare(kernel.CLONE_NEWUSER, "create a user namespace")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


@contextmanager
def _tmpfs(attributes: int) -> Iterator[str]:
    """The path of a tmpfs in a mount namespace of our own."""
    _enter_user_namespace()
    kernel.unshare(kernel.CLONE_NEWNS, "mount namespace")
    kernel.set_private("make mounts private")
    stage = tempfile.mkdtemp(prefix="agentcube-probe-")
    try:
        mount = kernel.new_mount("tmpfs", {"size": "64k"}, attributes, "mount a tmpfs")
        target = os.open(stage, os.O_PATH | os.O_CLOEXEC)
        kernel.attach(mount, target, "move a mount")
        os.close(target)
        os.close(mount)
        try:
            yield stage
        finally:
            kernel.call("unmount", "umount2", stage.encode(), 2)
    finally:
        os.rmdir(stage)


def _in_fork(work: Callable[[], None]) -> None:
    """Run `work` in a child (process 1 of a new pid namespace, say) and raise what it raised."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except OSError as exc:
            os.write(write, str(exc).encode())
            os._exit(1)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read, "rb") as pipe:
        words = pipe.read().decode()
    if status:
        raise OSError(0, words or f"a child ended with status {status}")


def _in_child_namespace(map_ids: Callable[[int], object]) -> None:
    """Let `map_ids` write the map of a child that waits in a new user namespace."""
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kernel.unshare(kernel.CLONE_NEWUSER, "create a user namespace")
            os.write(ready_write, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(ready_write)
    try:
        with os.fdopen(ready_read, "rb") as pipe:
            if pipe.read(1) != b"1":
                raise OSError(0, "create a user namespace: refused")
        map_ids(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@contextmanager
def _group() -> Iterator[tuple[CgroupTree, SandboxCgroup]]:
    """A sandbox's groups with a child of ours in them; killed and removed afterwards."""
    tree = CgroupTree.detect(f"probe-{uuid.uuid4().hex[:8]}", favor_moves=False)
    try:
        if not tree.hierarchies:
            raise OSError(0, "no group of this machine is ours to use")
        group = tree.make("probe", Resources())
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        try:
            group.attach(pid)
            yield tree, group
        finally:
            group.kill()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            group.remove()
    finally:
        tree.cleanup()


def main(name: str, *arguments: str) -> int:
    """Run one trial; prints what it found, or why not."""
    try:
        print(TRIALS[name](*arguments))  # noqa: T201  # the answer to whoever started us
    except (OSError, AgentCubeError, ValueError, RuntimeError) as exc:
        print((exc.strerror if isinstance(exc, OSError) else None) or exc)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
