"""Reading where control groups are mounted and who we are in them."""

from pathlib import Path

import pytest

from agentcube.drivers.local.cgroupfs import Hierarchy, own_groups, parse_mounts

HYBRID = """\
30 24 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
31 24 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 24 0:28 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
33 24 0:29 / /sys rw - sysfs sysfs rw
"""
DOCKER_V1 = "40 35 0:30 /docker/abc /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n"
DOCKER_V2 = "41 35 0:31 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"


def test_v1_v2_and_hybrid_mounts_are_told_apart() -> None:
    found = [(m.version, m.path.name, m.controllers >= {"memory"}) for m in parse_mounts(HYBRID)]
    assert found == [(1, "cpu,cpuacct", False), (1, "memory", True), (2, "unified", False)]


def test_a_machine_without_control_groups_has_none() -> None:
    assert parse_mounts("33 24 0:29 / /sys rw - sysfs sysfs rw\n") == []


@pytest.mark.parametrize(
    ("mountinfo", "group", "place"),
    [
        (DOCKER_V1, "/docker/abc", "/sys/fs/cgroup/pids"),
        (DOCKER_V1, "/docker/abc/deep", "/sys/fs/cgroup/pids/deep"),
        (DOCKER_V2, "/", "/sys/fs/cgroup"),
        (DOCKER_V2, "/user.slice/a.scope", "/sys/fs/cgroup/user.slice/a.scope"),
    ],
)
def test_a_group_is_found_below_whatever_part_of_the_tree_is_mounted(
    mountinfo: str, group: str, place: str
) -> None:
    (mount,) = parse_mounts(mountinfo)
    assert mount.place(group) == Path(place)


def test_our_own_group_is_known_by_controller() -> None:
    text = "9:name=systemd:/\n3:cpu,cpuacct:/a\n4:memory:/b:c\n0::/d\n"
    assert own_groups(text) == {"name=systemd": "/", "cpu": "/a", "cpuacct": "/a", "memory": "/b:c", "": "/d"}


@pytest.mark.parametrize("names", [frozenset(), frozenset({"cpu"}), frozenset({"memory", "pids", "cpu"})])
def test_a_hierarchy_survives_the_handle(names: frozenset[str]) -> None:
    hierarchy = Hierarchy(2, names, Path("/x"))
    assert Hierarchy.parse(hierarchy.key, Path("/x")) == hierarchy


@pytest.mark.parametrize(
    ("names", "leaves"), [({"cpu"}, False), ({"freezer"}, False), ({"memory"}, True), ({"pids"}, True)]
)
def test_only_trees_with_limits_for_the_user_have_two_leaves(names: set[str], leaves: bool) -> None:
    hierarchy = Hierarchy(1, frozenset(names), Path("/x"))
    assert hierarchy.leaves is leaves
    assert (hierarchy.leaf("user") == Path("/x/user")) is leaves
