"""Control groups: limits, counts, freezing and killing, on v1, v2 and hybrid machines.

Layout below every hierarchy's base: `agentcube/<instance>/<sandbox>[/{picod,user}]`. The leaves
exist where memory or pids are limited: the limits sit on `user`, so that neither the OOM killer nor
a fork bomb takes PicoD. CPU and disk shares, freezing and killing are the sandbox's as a whole.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Self

from agentcube.drivers.local.cgroupfs import SERVER_LEAF, Hierarchy, detect, write
from agentcube.drivers.local.inside import kernel
from agentcube.drivers.local.sandboxgroup import SandboxCgroup
from agentcube.errors import DriverFailed
from agentcube.model.sandbox import Resources

__all__ = ["CgroupTree", "SandboxCgroup"]

FOLDER = "agentcube"
PICOD_MEMORY_BYTES = 384 << 20
"""PicoD's own bound: a Python process of 20 MB, 32 MiB of the outputs of calls, 64 MiB of those of
processes, 48 MiB of kernels' events, and one JSON body of 32 MiB, which takes up to eight times that
while it is read when its characters are rare ones."""

_TRIAL = "trial"  # no sandbox's name: those begin with sb-
_CPU_PERIOD_US = 100_000  # the kernel's default; quotas below 1 ms are refused


class CgroupTree:
    """All control groups of one server instance.

    `limits` is "cgroup" when memory and process counts can be limited here, else "rlimit": the
    launcher then bounds them with rlimits and PicoD's metering. `freezes` is whether a sandbox can be
    frozen here.
    """

    limits: Literal["cgroup", "rlimit"]
    freezes: bool = False

    def __init__(
        self, instance: str, hierarchies: Sequence[Hierarchy], moved_from: Path | None = None
    ) -> None:
        self.instance = instance
        self.hierarchies = tuple(hierarchies)
        self.controllers = frozenset(c for h in hierarchies for c in h.controllers)
        self.limits = "cgroup" if {"memory", "pids"} <= self.controllers else "rlimit"
        self._moved_from = moved_from
        self._favoring: int | None = None

    @classmethod
    def detect(cls, instance: str, *, favor_moves: bool = True) -> Self:
        """The groups this process may use, made where they do not exist yet.

        The top of each hierarchy when it is writable (root), else our own group when it was delegated
        to us. On v2 a group with processes cannot share out controllers: in a delegated group of our
        own this process first moves into a leaf beside them (`cleanup` moves it back). `favor_moves`:
        see the method of that name.
        """
        found, moved_from = detect(f"{FOLDER}/{instance}")
        tree = cls(instance, found, moved_from)
        tree.freezes = tree._try_to_freeze()
        if favor_moves and tree.limits == "cgroup":
            tree.favor_moves()
        return tree

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
        counts both together. PicoD has 384 MiB of its own, plus what it may be charged for: pages of
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

    def favor_moves(self) -> bool:
        """Ask the kernel to make moving processes between groups cheap; whether it agreed (root, Linux 6.1).

        PicoD moves every process it starts. After 100 ms without a move the next one waits for an RCU
        grace period: 5-8 ms measured, 0.08 ms with this. The option belongs to a mount, so an empty
        hierarchy that nobody sees carries it. It is machine-wide, makes fork and exit no slower that
        we could measure, and ends with this process (from Linux 6.18 on only with the next boot).
        """
        if self._favoring is None:
            options = {"none": None, "name": FOLDER, "favordynmods": None}
            try:
                self._favoring = kernel.new_mount("cgroup", options, 0, "favor moves between control groups")
            except OSError:
                return False
        return True

    def _try_to_freeze(self) -> bool:
        """Whether an empty group can be frozen and thawed."""
        freezing = {h.key: str(h.base / _TRIAL) for h in self.hierarchies if h.freezes}
        trial = SandboxCgroup(_TRIAL, freezing)
        try:
            for dir in freezing.values():
                os.makedirs(dir, exist_ok=True)
            trial.freeze()
            trial.thaw()
        except (OSError, DriverFailed):
            return False
        finally:
            trial.remove()
        return True

    def cleanup(self) -> None:
        """Remove the instance's own directories where they are empty. Sandboxes stay."""
        if self._favoring is not None:
            os.close(self._favoring)
            self._favoring = None
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


def _move_back(own: Path) -> None:
    """Undo the move into a leaf, once no sandbox needs the controllers there."""
    try:
        shared = (own / "cgroup.subtree_control").read_text().split()
        (own / "cgroup.subtree_control").write_text(" ".join(f"-{c}" for c in shared))
        (own / "cgroup.procs").write_text("0")
        (own / SERVER_LEAF).rmdir()
    except OSError:
        pass  # sandboxes still run below it: the leaf stays, and goes with the delegated group
