"""Control groups: limits, counts, freezing and killing, on v1, v2 and hybrid machines.

Layout below every hierarchy's base: `agentcube/<instance>/<sandbox>[/{picod,user}]`. The leaves
exist where memory or pids are limited: the limits sit on `user`, so that neither the OOM killer nor
a fork bomb takes PicoD. CPU and disk shares, freezing and killing are the sandbox's as a whole.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from agentcube.drivers.local.cgroupfs import Hierarchy, detect, is_gone, read_int, read_table, write
from agentcube.errors import DriverFailed
from agentcube.model.sandbox import Resources
from agentcube.ports.driver import Usage

FOLDER = "agentcube"
PICOD_MEMORY_BYTES = 128 << 20
"""PicoD's own bound: a Python process of about 20 MB, 8 MiB buffers, and room."""

_CPU_PERIOD_US = 100_000  # the kernel's default; quotas below 1 ms are refused
_REMOVE_WITHIN_S = 5.0
_FREEZE_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class SandboxCgroup:
    """One sandbox's groups. `paths` goes into the handle; calls on groups that are gone do nothing."""

    id: str
    paths: Mapping[str, str]

    @property
    def _groups(self) -> list[Hierarchy]:
        return [Hierarchy.parse(key, Path(path)) for key, path in self.paths.items()]

    def attach(self, pid: int) -> None:
        """Place `pid` into PicoD's group of every hierarchy; its children will be born there.

        Raises:
            DriverFailed: a group refused it.
        """
        for group in self._groups:
            write(group.leaf("picod") / "cgroup.procs", str(pid), f"place process {pid}")

    def user_fds(self) -> list[int]:
        """New descriptors (write-only, close-on-exec) of the `user` groups' cgroup.procs.

        A process that writes "0" to each of them has moved into the user's limits. The kernel checks
        the permission of whoever opened them. The caller closes them.
        """
        fds: list[int] = []
        try:
            for group in (g for g in self._groups if g.leaves):
                fds.append(os.open(group.leaf("user") / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))  # noqa: PERF401  # those open so far are closed on failure
        except OSError as exc:
            for fd in fds:
                os.close(fd)
            raise DriverFailed(f"sandbox {self.id}: cannot open its control group: {exc}") from exc
        return fds

    def pids(self) -> set[int]:
        """Processes in the sandbox, by their ids on the host."""
        found: set[int] = set()
        for group in self._groups:
            for procs in _tree(group.base):
                try:
                    found.update(map(int, (procs / "cgroup.procs").read_text().split()))
                except OSError as exc:
                    if not is_gone(exc):
                        raise
        return found

    def kill(self) -> bool:
        """SIGKILL everything in the sandbox, forks in flight included; frozen or not.

        Returns False where no group can tell what belongs to the sandbox. The groups must not be used
        again: a killed v2 group kills whatever is cloned into it later.
        """
        groups = self._groups
        for group in groups:
            if group.version == 2 and (group.base / "cgroup.kill").exists():
                write(group.base / "cgroup.kill", "1", f"kill sandbox {self.id}", gone_ok=True)
                self._thaw_v1(groups)
                return True
        if not groups:
            return False
        self._kill_by_signals(groups)
        return True

    def _kill_by_signals(self, groups: Sequence[Hierarchy]) -> None:
        # Kernels before 5.14. Frozen first where that is possible, so that nothing forks away; the
        # signals are delivered at the thaw.
        deadline = time.monotonic() + _FREEZE_WITHIN_S
        while pids := self.pids():
            self._set_frozen(groups, frozen=True)
            for pid in pids | self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self._set_frozen(groups, frozen=False)
            if time.monotonic() > deadline:
                raise DriverFailed(
                    f"sandbox {self.id}: processes survive SIGKILL: {sorted(self.pids())[:10]}"
                )
            time.sleep(0.002)

    def _thaw_v1(self, groups: Sequence[Hierarchy]) -> None:
        for group in groups:
            if group.version == 1 and "freezer" in group.controllers:
                write(group.base / "freezer.state", "THAWED", f"thaw sandbox {self.id}", gone_ok=True)

    def can_freeze(self) -> bool:
        """Whether a freezer holds this sandbox."""
        return any(group.version == 2 or "freezer" in group.controllers for group in self._groups)

    def freeze(self) -> None:
        """Stop every process of the sandbox and return once all stand still. Idempotent.

        Raises:
            DriverFailed: no freezer here, or the processes did not stop within 5 s (thawed again then).
        """
        if not self.can_freeze():
            raise DriverFailed(f"sandbox {self.id}: this machine has no freezer for it")
        self._set_frozen(self._groups, frozen=True)
        if not _wait(self.is_frozen, _FREEZE_WITHIN_S):
            self.thaw()
            raise DriverFailed(f"sandbox {self.id} did not freeze within {_FREEZE_WITHIN_S:.0f} s")

    def thaw(self) -> None:
        """Let the processes go on. Idempotent."""
        self._set_frozen(self._groups, frozen=False)

    def is_frozen(self) -> bool:
        """Whether all processes stand still now."""
        for group in self._groups:
            try:
                if group.version == 2:
                    return read_table(group.base / "cgroup.events").get("frozen") == 1
                if "freezer" in group.controllers:
                    return (group.base / "freezer.state").read_text().strip() == "FROZEN"
            except OSError as exc:
                if not is_gone(exc):
                    raise
        return False

    def _set_frozen(self, groups: Sequence[Hierarchy], *, frozen: bool) -> None:
        step = f"{'freeze' if frozen else 'thaw'} sandbox {self.id}"
        for group in groups:
            if group.version == 2:
                write(group.base / "cgroup.freeze", "1" if frozen else "0", step, gone_ok=True)
            elif "freezer" in group.controllers:
                write(group.base / "freezer.state", "FROZEN" if frozen else "THAWED", step, gone_ok=True)

    def usage(self) -> Usage:
        """What the sandbox uses now, page cache that the kernel would drop first not counted."""
        memory: int | None = None
        cpu_s: float | None = None
        pids: int | None = None
        for group in self._groups:
            dir, v2 = group.base, group.version == 2
            try:
                if "memory" in group.controllers:
                    total = read_int(dir / ("memory.current" if v2 else "memory.usage_in_bytes"))
                    cache = read_table(dir / "memory.stat")["inactive_file" if v2 else "total_inactive_file"]
                    memory = max(0, total - cache)
                if "pids" in group.controllers:
                    pids = read_int(dir / "pids.current")
                if v2:
                    cpu_s = read_table(dir / "cpu.stat")["usage_usec"] / 1e6
                elif "cpuacct" in group.controllers:
                    cpu_s = read_int(dir / "cpuacct.usage") / 1e9
            except (OSError, KeyError) as exc:
                if isinstance(exc, OSError) and not is_gone(exc):
                    raise
        return Usage(memory_bytes=memory, cpu_s=cpu_s, pids=pids)

    def oom_kills(self) -> int:
        """How many of the user's processes the kernel has killed for want of memory."""
        for group in self._groups:
            if "memory" in group.controllers:
                name = "memory.events" if group.version == 2 else "memory.oom_control"
                try:
                    return read_table(group.leaf("user") / name).get("oom_kill", 0)
                except OSError as exc:
                    if not is_gone(exc):
                        raise
        return 0

    def remove(self) -> None:
        """Remove the groups. Idempotent; waits up to 5 s for killed processes to leave them.

        Raises:
            DriverFailed: something still lives in one of them.
        """
        for group in self._groups:
            if not _wait(lambda base=group.base: _remove_tree(base), _REMOVE_WITHIN_S):  # type: ignore[misc]  # mypy has no type for a lambda's default
                raise DriverFailed(
                    f"sandbox {self.id}: its control group is still in use by {sorted(self.pids())[:10]}",
                    path=str(group.base),
                )


class CgroupTree:
    """All control groups of one server instance.

    `limits` is "cgroup" when memory and process counts can be limited here, else "rlimit": the
    launcher then bounds them with rlimits and PicoD's metering.
    """

    limits: Literal["cgroup", "rlimit"]

    def __init__(
        self, instance: str, hierarchies: Sequence[Hierarchy], moved_from: Path | None = None
    ) -> None:
        self.instance = instance
        self.hierarchies = tuple(hierarchies)
        self.controllers = frozenset(c for h in hierarchies for c in h.controllers)
        self.limits = "cgroup" if {"memory", "pids"} <= self.controllers else "rlimit"
        self._moved_from = moved_from

    @classmethod
    def detect(cls, instance: str) -> Self:
        """The groups this process may use, made where they do not exist yet.

        The top of each hierarchy when it is writable (root), else our own group when it was delegated
        to us. On v2 a group with processes cannot share out controllers: in a delegated group of our
        own this process first moves into a leaf beside them (`cleanup` moves it back).
        """
        found, moved_from = detect(f"{FOLDER}/{instance}")
        return cls(instance, found, moved_from)

    @property
    def version(self) -> Literal["v1", "v2", "hybrid", "none"]:
        """Which kind of tree this is."""
        versions = {h.version for h in self.hierarchies}
        if not versions:
            return "none"
        return "hybrid" if len(versions) == 2 else "v2" if versions == {2} else "v1"

    def make(
        self, sandbox_id: str, resources: Resources, *, workspace_in_memory: bool = True
    ) -> SandboxCgroup:
        """Fresh groups with limits for one sandbox. Nothing is left when it fails.

        `memory_bytes` and `pids_max` hold for the user's processes, swap included where the kernel
        counts both together. PicoD has 128 MiB of its own, plus what it may be charged for: pages of
        /tmp and of a workspace in memory belong to whoever writes them first. A workspace on disk
        adds nothing: its cached pages are dropped when the group is full.

        Raises:
            DriverFailed: a group exists with processes in it, or the kernel refused a limit.
        """
        made = self._sandbox(sandbox_id)
        made.remove()  # a killed group is never used again
        picod_bytes = PICOD_MEMORY_BYTES + resources.tmp_bytes
        picod_bytes += resources.workspace_bytes if workspace_in_memory else 0
        try:
            for hierarchy in self.hierarchies:
                _make_group(hierarchy.child(sandbox_id), resources, picod_bytes)
        except (OSError, DriverFailed) as exc:
            made.remove()
            raise DriverFailed(f"sandbox {sandbox_id}: cannot make its control group: {exc}") from exc
        return made

    def open(self, sandbox_id: str, paths: Mapping[str, str]) -> SandboxCgroup:
        """The groups recorded in a handle, after a restart; they need not exist any more."""
        return SandboxCgroup(sandbox_id, dict(paths))

    def remove(self, sandbox_id: str) -> None:
        """Remove the groups of `sandbox_id` below this instance. As `SandboxCgroup.remove`."""
        self._sandbox(sandbox_id).remove()

    def inventory(self) -> set[str]:
        """Ids of the sandboxes that have a group below this instance."""
        found: set[str] = set()
        for hierarchy in self.hierarchies:
            try:
                found.update(entry.name for entry in os.scandir(hierarchy.base) if entry.is_dir())
            except FileNotFoundError:
                pass
        return found

    def cleanup(self) -> None:
        """Remove the instance's own directories where they are empty. Sandboxes stay."""
        for hierarchy in self.hierarchies:
            for dir in (hierarchy.base, hierarchy.base.parent):
                try:
                    dir.rmdir()
                except OSError:
                    break  # in use, or gone
        if self._moved_from is not None:
            _move_back(self._moved_from)

    def _sandbox(self, sandbox_id: str) -> SandboxCgroup:
        return SandboxCgroup(sandbox_id, {h.key: str(h.base / sandbox_id) for h in self.hierarchies})


def _make_group(group: Hierarchy, resources: Resources, picod_bytes: int) -> None:
    """One sandbox's directories in one hierarchy, limits set before anything can live in them."""
    group.base.mkdir()
    if "cpu" in group.controllers:
        _limit_cpu(group, resources.cpu_millis)
    for name in ("io.weight", "blkio.bfq.weight", "blkio.weight"):
        if (group.base / name).exists():  # a sandbox's share of the disk goes with its share of the CPU
            weight = min(1000, max(10, resources.cpu_millis // 10))
            write(group.base / name, str(weight), "set the disk share")
    if not group.leaves:
        return
    if group.version == 2:
        group.share({"memory", "pids"})
    for leaf, memory, pids in (
        ("picod", picod_bytes, None),
        ("user", resources.memory_bytes, resources.pids_max),
    ):
        dir = group.leaf(leaf)
        dir.mkdir()
        if "memory" in group.controllers:
            _limit_memory(group, dir, memory)
        if "pids" in group.controllers and pids is not None:
            write(dir / "pids.max", str(pids), "limit processes")


def _limit_cpu(group: Hierarchy, cpu_millis: int) -> None:
    quota = max(1000, cpu_millis * _CPU_PERIOD_US // 1000)
    if group.version == 2:
        write(group.base / "cpu.max", f"{quota} {_CPU_PERIOD_US}", "limit CPU")
        write(group.base / "cpu.weight", str(min(10_000, max(1, cpu_millis // 10))), "set the CPU share")
    else:
        write(group.base / "cpu.cfs_period_us", str(_CPU_PERIOD_US), "limit CPU")
        write(group.base / "cpu.cfs_quota_us", str(quota), "limit CPU")
        write(group.base / "cpu.shares", str(max(2, cpu_millis * 1024 // 1000)), "set the CPU share")


def _limit_memory(group: Hierarchy, dir: Path, limit: int) -> None:
    if group.version == 2:
        write(dir / "memory.max", str(limit), "limit memory")
        swap, swap_limit = dir / "memory.swap.max", 0
    else:
        write(dir / "memory.limit_in_bytes", str(limit), "limit memory")
        swap, swap_limit = dir / "memory.memsw.limit_in_bytes", limit
    if swap.exists():  # absent where the kernel does not account for swap
        write(swap, str(swap_limit), "limit swap")


def _tree(dir: Path) -> Iterator[Path]:
    """`dir` and the groups below it, deepest first. A user cannot make groups: two levels at most."""
    try:
        children = [entry.path for entry in os.scandir(dir) if entry.is_dir()]
    except FileNotFoundError:
        return
    for child in children:
        yield from _tree(Path(child))
    yield dir


def _remove_tree(dir: Path) -> bool:
    """Whether `dir` is gone now. EBUSY (processes still leaving) is a plain no."""
    for group in _tree(dir):
        try:
            group.rmdir()
        except FileNotFoundError:
            pass
        except OSError:
            return False
    return True


def _move_back(own: Path) -> None:
    """Undo the move into a leaf, once no sandbox needs the controllers there."""
    try:
        shared = (own / "cgroup.subtree_control").read_text().split()
        (own / "cgroup.subtree_control").write_text(" ".join(f"-{c}" for c in shared))
        (own / "cgroup.procs").write_text("0")
        (own / f"{FOLDER}-server").rmdir()
    except OSError:
        pass  # sandboxes still run below it: the leaf stays, and goes with the delegated group


def _wait(condition: Callable[[], bool], within_s: float) -> bool:
    """Whether `condition` became true in time, looking often at first."""
    deadline, pause = time.monotonic() + within_s, 0.0005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)
    return True
