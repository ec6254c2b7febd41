"""One sandbox's control groups, once they exist: place, freeze, count, kill, remove.

It works from recorded paths alone, so that it does so after a restart and from another group too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentcube.drivers.local.cgroupfs import Hierarchy, is_gone, read_int, read_table, write
from agentcube.errors import DriverFailed
from agentcube.ports.driver import Usage

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
        return any(group.freezes for group in self._groups)

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

    def is_held(self) -> bool:
        """Whether the processes were told to stand still, whether or not all do yet."""
        for group in self._groups:
            try:
                if group.version == 2:
                    return read_int(group.base / "cgroup.freeze") == 1
                if "freezer" in group.controllers:
                    return (group.base / "freezer.state").read_text().strip() != "THAWED"
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
        for path in self._oom_files():
            try:
                return read_table(path).get("oom_kill", 0)
            except OSError as exc:
                if not is_gone(exc):
                    raise
        return 0

    def oom_fd(self) -> int | None:
        """A new descriptor (read-only, close-on-exec) of the table that `oom_kills` reads; None where none is."""
        for path in self._oom_files():
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as exc:
                raise DriverFailed(f"sandbox {self.id}: cannot open its control group: {exc}") from exc
        return None

    def _oom_files(self) -> list[Path]:
        return [
            group.leaf("user") / ("memory.events" if group.version == 2 else "memory.oom_control")
            for group in self._groups
            if "memory" in group.controllers
        ]

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


def _wait(condition: Callable[[], bool], within_s: float) -> bool:
    """Whether `condition` became true in time, looking often at first."""
    deadline, pause = time.monotonic() + within_s, 0.0005
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(0.02, pause * 1.5)
    return True
