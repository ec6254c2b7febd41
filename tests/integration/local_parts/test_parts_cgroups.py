"""Control groups of this machine, with real processes in them. Needs root or a delegated group."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.harness import eventually

from agentcube.drivers.local.cgroupfs import Hierarchy, make
from agentcube.drivers.local.cgroups import CgroupTree, SandboxCgroup
from agentcube.errors import DriverFailed
from agentcube.model.sandbox import Resources

SMALL = Resources(
    memory_bytes=64 << 20, pids_max=20, cpu_millis=500, workspace_bytes=1 << 20, tmp_bytes=1 << 20
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def tree() -> Iterator[CgroupTree]:
    tree = CgroupTree.detect(f"test-{uuid.uuid4().hex[:8]}")
    if tree.limits != "cgroup":
        tree.cleanup()
        pytest.skip("no control groups to use here: run as root or in a delegated group")
    yield tree
    for name in tree.inventory():
        group = tree.open(name, {h.key: str(h.base / name) for h in tree.hierarchies})
        group.thaw()
        group.kill()
        group.remove()
    tree.cleanup()
    assert not any(h.base.exists() for h in tree.hierarchies)


@pytest.fixture
def group(tree: CgroupTree) -> SandboxCgroup:
    return tree.make("sb-test", SMALL)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python code, as PicoD would (in its leaf) or moved to the user's by itself."""
    started: list[subprocess.Popen[str]] = []

    def run(group: SandboxCgroup, code: str, *, as_user: bool = True) -> "subprocess.Popen[str]":
        fds = group.user_fds() if as_user else []
        enter = "import os\ninput()\n" + "".join(f"os.write({fd}, b'0')\n" for fd in fds)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", enter + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=fds,
            start_new_session=True,
        )
        started.append(process)
        for fd in fds:
            os.close(fd)
        group.attach(process.pid)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_lands_in_picods_leaf_and_moves_itself_to_the_users(
    group: SandboxCgroup, start: Start
) -> None:
    picod = start(group, "print('ready', flush=True); input()", as_user=False)
    user = start(group, "print('ready', flush=True); input()")
    said(picod), said(user)
    leaves = [h for h in (Hierarchy.parse(k, Path(p)) for k, p in group.paths.items()) if h.leaves]
    assert leaves
    for hierarchy in leaves:
        assert (hierarchy.leaf("picod") / "cgroup.procs").read_text().split() == [str(picod.pid)]
        assert (hierarchy.leaf("user") / "cgroup.procs").read_text().split() == [str(user.pid)]
    assert group.pids() == {picod.pid, user.pid}


def test_a_memory_bomb_of_the_user_dies_and_picod_does_not(group: SandboxCgroup, start: Start) -> None:
    picod = start(group, "print('ready', flush=True); input(); print('alive', flush=True)", as_user=False)
    said(picod)
    bomb = start(group, "b = []\nwhile True: b.append(bytearray(1 << 20))")
    assert bomb.wait(timeout=30) == -signal.SIGKILL
    assert group.oom_kills() == 1
    assert picod.stdin is not None
    picod.stdin.write("\n")
    picod.stdin.flush()
    assert said(picod) == "alive"


def test_a_fork_bomb_of_the_user_ends_at_its_limit(group: SandboxCgroup, start: Start) -> None:
    code = """
        import signal, time
        count = 0
        try:
            while True:
                if os.fork() == 0:
                    signal.pause()
                count += 1
        except OSError as error:
            print(count, error.errno, flush=True)
        input()
    """
    count, number = said(start(group, code)).split()
    assert (int(count), int(number)) == (SMALL.pids_max - 1, 11)  # EAGAIN
    assert group.usage().pids == SMALL.pids_max
    group.kill()
    eventually(lambda: group.pids() == set(), within=10)


def test_a_busy_loop_gets_its_share_of_a_cpu(group: SandboxCgroup, start: Start) -> None:
    code = """
        import time
        begin, used = time.monotonic(), time.process_time()
        while time.monotonic() < begin + 1.5:
            pass
        print((time.process_time() - used) / (time.monotonic() - begin), flush=True)
    """
    assert float(said(start(group, code))) < 0.65  # half a CPU was asked for


def test_usage_tells_memory_cpu_and_processes(group: SandboxCgroup, start: Start) -> None:
    code = """
        import time
        block = bytearray(20 << 20)
        begin = time.process_time()
        while time.process_time() < begin + 0.1:
            pass
        print('ready', flush=True)
        input()
    """
    said(start(group, code))
    usage = group.usage()
    assert usage.memory_bytes is not None
    assert 20 << 20 < usage.memory_bytes < 40 << 20
    assert usage.cpu_s is not None
    assert 0.1 <= usage.cpu_s < 2
    assert usage.pids == 1


def test_what_is_frozen_stands_still_until_it_is_thawed(group: SandboxCgroup, start: Start) -> None:
    counter = start(
        group, "n = 0\nwhile True:\n    n += 1\n    print(n, flush=True)\n    import time; time.sleep(0.001)"
    )
    said(counter)
    group.freeze()
    group.freeze()
    assert group.is_frozen()
    before = Path(f"/proc/{counter.pid}/stat").read_text().split()[13:15]
    time.sleep(0.05)  # the process has the chance to run that it must not take
    assert Path(f"/proc/{counter.pid}/stat").read_text().split()[13:15] == before
    group.thaw()
    group.thaw()
    assert not group.is_frozen()
    said(counter)


@pytest.mark.parametrize("frozen", [False, True])
def test_kill_takes_everything_frozen_or_not(group: SandboxCgroup, start: Start, frozen: bool) -> None:
    code = """
        import signal
        for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(n, signal.SIG_IGN)
        for _ in range(5):
            if os.fork() == 0:
                os.setsid()
                signal.pause()
        print('ready', flush=True)
        signal.pause()
    """
    process = start(group, code)
    said(process)
    assert len(group.pids()) == 6
    if frozen:
        group.freeze()
    assert group.kill()
    assert process.wait(timeout=10) == -signal.SIGKILL
    group.remove()
    assert not any(Path(path).exists() for path in group.paths.values())


def test_groups_are_found_again_from_what_the_handle_says(
    tree: CgroupTree, group: SandboxCgroup, start: Start
) -> None:
    process = start(group, "print('ready', flush=True); input()")
    said(process)
    again = tree.open("sb-test", dict(group.paths))
    assert again.pids() == {process.pid}
    again.kill()
    assert process.wait(timeout=10) == -signal.SIGKILL


def test_removal_is_idempotent_and_waits_for_the_dying(
    tree: CgroupTree, group: SandboxCgroup, start: Start
) -> None:
    said(start(group, "print('ready', flush=True); input()"))
    assert tree.inventory() == {"sb-test"}
    group.kill()
    tree.remove("sb-test")
    tree.remove("sb-test")
    assert tree.inventory() == set()
    assert group.usage().pids is None
    assert group.oom_kills() == 0
    group.thaw()
    group.kill()


def test_groups_with_processes_are_not_made_anew(
    tree: CgroupTree, group: SandboxCgroup, start: Start
) -> None:
    process = start(group, "print('ready', flush=True); input()")
    said(process)
    with pytest.raises(DriverFailed, match=f"still in use by \\[{process.pid}\\]"):
        tree.make("sb-test", SMALL)


def test_a_sandbox_leaves_no_group_when_a_limit_is_refused(tree: CgroupTree) -> None:
    with pytest.raises(DriverFailed, match="cannot make its control group"):
        tree.make("sb-bad", Resources(pids_max=-5))
    assert tree.inventory() == set()


def test_two_instances_do_not_see_each_other(tree: CgroupTree, group: SandboxCgroup) -> None:
    other = CgroupTree.detect(f"test-{uuid.uuid4().hex[:8]}")
    try:
        assert other.inventory() == set()
        other.make("sb-test", SMALL).remove()
        assert tree.inventory() == {"sb-test"}
    finally:
        other.cleanup()


def test_whether_sandboxes_can_be_frozen_is_tried(tree: CgroupTree) -> None:
    assert tree.freezes == any(h.freezes for h in tree.hierarchies)
    assert tree.inventory() == set()  # the trial is over


def test_the_v1_freezer_is_tried_too_and_other_groups_freeze_nothing() -> None:
    base = Path("/sys/fs/cgroup/freezer")
    if not os.access(base, os.W_OK):
        pytest.skip("no v1 freezer to use here")
    hierarchy = Hierarchy(1, frozenset({"freezer"}), base / f"agentcube/test-{uuid.uuid4().hex[:8]}")
    make(hierarchy.base)
    freezer = CgroupTree("x", [hierarchy])
    try:
        assert freezer._try_to_freeze()
        assert freezer.inventory() == set()
    finally:
        freezer.cleanup()
    cpu = Hierarchy(1, frozenset({"cpu"}), Path("/nonexistent"))
    missing = Hierarchy(2, frozenset(), Path("/proc/nonexistent"))
    for other in ([], [cpu], [missing]):
        assert not CgroupTree("x", other)._try_to_freeze()


def test_without_a_v2_tree_signals_and_the_v1_freezer_do_it(start: Start) -> None:
    base = Path("/sys/fs/cgroup/freezer")
    if not os.access(base, os.W_OK) or not (base / "cgroup.procs").exists():
        pytest.skip("no v1 freezer to use here")
    hierarchy = Hierarchy(1, frozenset({"freezer"}), base / f"agentcube/test-{uuid.uuid4().hex[:8]}")
    make(hierarchy.base)
    tree = CgroupTree("test", [hierarchy])
    group = tree.make("sb-test", SMALL)
    try:
        code = """
            import signal
            while True:
                if os.fork() == 0:
                    os.setsid()
                    print('child', flush=True)
                    signal.pause()
                signal.sigtimedwait([signal.SIGUSR1], 0.002)
        """
        process = start(group, code)
        said(process)
        group.freeze()
        assert group.is_frozen()
        group.thaw()
        assert group.kill()
        assert group.pids() == set()
        assert process.wait(timeout=10) == -signal.SIGKILL
    finally:
        group.kill()
        group.remove()
        tree.cleanup()


def test_where_there_are_no_groups_nothing_is_claimed(tmp_path: Path) -> None:
    tree = CgroupTree("none", [])
    assert (tree.limits, tree.version) == ("rlimit", "none")
    group = tree.make("sb-test", SMALL)
    assert group.paths == {}
    group.attach(os.getpid())
    assert group.user_fds() == []
    assert not group.kill()
    assert group.usage().memory_bytes is None
    with pytest.raises(DriverFailed, match="no freezer"):
        group.freeze()
    group.remove()
    tree.cleanup()
