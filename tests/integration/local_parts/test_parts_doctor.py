"""The doctor looks and leaves no trace."""

from pathlib import Path

import pytest

from agentcube.drivers.local.doctor import checks


def traces() -> dict[str, int]:
    """What trials make and have to take away again."""
    groups = list(Path("/sys/fs/cgroup").glob("**/agentcube/*"))
    loops = list(Path("/sys/block").glob("loop*/loop/backing_file"))
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {"groups": len(groups), "loops": len(loops), "mounts": len(mounts)}


@pytest.mark.serial
def test_it_leaves_no_group_device_or_mount(tmp_path: Path) -> None:
    before = traces()
    checks(tmp_path)
    assert traces() == before
    assert list(tmp_path.iterdir()) == []
