"""Control groups that somebody else gave us: the server makes room in them and leaves them as they were."""

import contextlib
import os
import signal
import subprocess
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import eventually

from agentcube.drivers.local.cgroupfs import Hierarchy, Mount, own_groups, parse_mounts, use_v2
from agentcube.drivers.local.cgroups import CgroupTree
from agentcube.model.sandbox import Resources

USER = 21042
LIMITS = {"memory", "pids", "cpu"}
SMALL = Resources(
    memory_bytes=64 << 20, pids_max=20, cpu_millis=500, workspace_bytes=1 << 20, tmp_bytes=1 << 20
)


def in_a_child(work: Callable[[], None]) -> None:
    """Run `work` in a process of its own, whose group it may change."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.fixture
def delegated() -> Iterator[tuple[Mount, str]]:
    """A v2 group with a controller to share out, as a delegated one is. Where v2 has only hugetlb, that does."""
    mount = next((m for m in parse_mounts(Path("/proc/self/mountinfo").read_text()) if m.version == 2), None)
    if mount is None or not os.access(mount.path / "cgroup.procs", os.W_OK):
        pytest.skip("no v2 tree to use here")
    control = mount.path / "cgroup.subtree_control"
    if "hugetlb" not in (mount.path / "cgroup.controllers").read_text().split():
        pytest.skip("no controller that nobody else uses")
    shared = "hugetlb" in control.read_text().split()
    group = mount.path / f"test-{uuid.uuid4().hex[:8]}"
    group.mkdir()
    control.write_text("+hugetlb")
    yield Mount(2, frozenset(), f"/{group.name}", group), f"/{group.name}"
    group.rmdir()
    if not shared:
        with contextlib.suppress(OSError):  # another test shares it out as well just now
            control.write_text("-hugetlb")


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_in_a_delegated_group_the_server_steps_aside_and_back(delegated: tuple[Mount, str]) -> None:
    mount, own = delegated

    def server() -> None:
        (mount.path / "cgroup.procs").write_text("0")
        usable, moved_from = use_v2(mount, own, "agentcube/x", frozenset({"hugetlb"}))
        assert usable == Hierarchy(2, frozenset({"hugetlb"}), mount.path / "agentcube/x")
        assert own_groups(Path("/proc/self/cgroup").read_text())[""].endswith(f"{own}/agentcube-server")
        tree = CgroupTree("x", [usable], moved_from)
        group = tree.make("sb-test", SMALL)
        assert (Path(group.paths[usable.key]) / "hugetlb.2MB.max").exists()
        group.remove()
        tree.cleanup()
        assert own_groups(Path("/proc/self/cgroup").read_text())[""].endswith(own)

    in_a_child(server)
    assert [p.name for p in mount.path.iterdir() if p.is_dir()] == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_group_shared_with_others_is_left_as_it_was(delegated: tuple[Mount, str]) -> None:
    mount, own = delegated

    def server() -> None:
        (mount.path / "cgroup.procs").write_text("0")
        other = subprocess.Popen(["sleep", "60"])
        try:
            assert use_v2(mount, own, "agentcube/x", frozenset({"hugetlb"})) == (None, None)
            assert own_groups(Path("/proc/self/cgroup").read_text())[""].endswith(own)
        finally:
            other.kill()
            other.wait()

    in_a_child(server)
    assert [p.name for p in mount.path.iterdir() if p.is_dir()] == []


@pytest.fixture
def lent() -> Iterator[list[Path]]:
    """A group in every tree of this machine, given to an ordinary user as a service manager would."""
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    if os.geteuid() != 0 or not all(os.access(m.path / "cgroup.procs", os.W_OK) for m in mounts):
        pytest.skip("only root can delegate")
    groups = [
        m.path / f"test-{uuid.uuid4().hex[:8]}" for m in mounts if m.version == 2 or m.controllers & LIMITS
    ]
    for group in groups:
        group.mkdir()
        for path in (group, *group.iterdir()):
            os.chown(path, USER, USER)
    yield groups
    for group in groups:
        eventually(lambda group=group: (group / "cgroup.procs").read_text() == "", within=10)
        group.rmdir()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_an_ordinary_user_can_use_what_was_delegated(lent: list[Path]) -> None:
    def server() -> None:
        for group in lent:
            (group / "cgroup.procs").write_text("0")
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        tree = CgroupTree.detect("x", favor_moves=False)
        assert {h.base.parent.parent for h in tree.hierarchies} <= set(lent)
        if tree.limits == "cgroup":
            sandbox = tree.make("sb-test", SMALL)
            process = subprocess.Popen(["sleep", "60"])
            sandbox.attach(process.pid)
            assert sandbox.pids() == {process.pid}
            sandbox.freeze()
            assert sandbox.kill()
            assert process.wait(timeout=10) == -signal.SIGKILL
            sandbox.remove()
        tree.cleanup()

    in_a_child(server)
    for group in lent:
        assert [p.name for p in group.iterdir() if p.is_dir()] == []
