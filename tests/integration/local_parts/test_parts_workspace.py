"""Workspaces on disk: ext4 images over loop devices. Needs root and loop devices."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.e2e.harness import eventually

from agentcube.drivers.local.workspace import IMAGE, Workspaces
from agentcube.errors import AgentCubeError, DriverFailed

SIZE = 16 << 20
UID = 10_001_000


@pytest.fixture
def workspaces(tmp_path: Path) -> Workspaces:
    made = Workspaces(tmp_path / "templates")
    if made.mechanism != "disk":
        pytest.skip(f"no workspaces on disk here: {made.reason}")
    return made


def devices_over(folder: Path) -> list[str]:
    """Loop devices whose backing file lies in `folder`."""
    names = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            names.append(file.read_text())
        except OSError:  # freed meanwhile
            continue
    return [name for name in names if name.startswith(str(folder))]


def write_forever(fd: int) -> None:
    while True:
        os.write(fd, b"x" * 65536)


def fill(mount: int) -> int:
    """Write until the kernel says no; returns how much went in."""
    fd = os.open("big", os.O_CREAT | os.O_WRONLY, dir_fd=mount)
    try:
        with pytest.raises(OSError, match="No space left"):
            write_forever(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def test_it_is_empty_owned_by_the_sandbox_and_holds_no_more_than_its_size(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    made = workspaces.create(tmp_path, SIZE, UID, UID)
    assert made.mount_fd is not None
    try:
        state = os.stat(".", dir_fd=made.mount_fd)
        assert (state.st_uid, state.st_gid, state.st_mode & 0o777) == (UID, UID, 0o755)
        assert os.listdir(f"/proc/self/fd/{made.mount_fd}") == []
        assert SIZE * 0.85 < fill(made.mount_fd) < SIZE
    finally:
        os.close(made.mount_fd)
    used = workspaces.used_bytes(tmp_path)
    assert used is not None
    assert SIZE * 0.85 < used <= SIZE


def test_it_is_mounted_without_setuid_and_devices(workspaces: Workspaces, tmp_path: Path) -> None:
    made = workspaces.create(tmp_path, SIZE, UID, UID)
    assert made.mount_fd is not None
    try:
        flags = os.fstatvfs(made.mount_fd).f_flag
        assert flags & os.ST_NOSUID
        assert flags & os.ST_NODEV
    finally:
        os.close(made.mount_fd)


def test_it_takes_little_disk_until_it_is_used(workspaces: Workspaces, tmp_path: Path) -> None:
    made = workspaces.create(tmp_path, 1 << 30, UID, UID)
    assert made.mount_fd is not None
    os.close(made.mount_fd)
    used = workspaces.used_bytes(tmp_path)
    assert used is not None
    assert used < 1 << 20


def test_nothing_is_left_when_the_last_mount_is_closed(workspaces: Workspaces, tmp_path: Path) -> None:
    made = workspaces.create(tmp_path, SIZE, UID, UID)
    assert made.mount_fd is not None
    assert devices_over(tmp_path) == [f"{tmp_path / IMAGE}\n"]
    workspaces.destroy(tmp_path)
    workspaces.destroy(tmp_path)
    assert not (tmp_path / IMAGE).exists()
    os.close(made.mount_fd)
    eventually(lambda: devices_over(tmp_path) == [], within=10)


def test_a_server_killed_with_workspaces_leaves_no_device(workspaces: Workspaces, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from agentcube.drivers.local.workspace import Workspaces
for n in range(3):
    dir = Path({str(tmp_path)!r}, str(n)); dir.mkdir()
    Workspaces(Path({str(tmp_path)!r}, "templates")).create(dir, {SIZE}, {UID}, {UID})
print("ready", flush=True)
input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        assert len(devices_over(tmp_path)) == 3
        server.send_signal(signal.SIGKILL)
        server.wait(timeout=10)
    eventually(lambda: devices_over(tmp_path) == [], within=10)


def test_twenty_at_once_are_all_different(workspaces: Workspaces, tmp_path: Path) -> None:
    def create(n: int) -> int:
        (tmp_path / str(n)).mkdir()
        made = workspaces.create(tmp_path / str(n), SIZE, UID + n, UID + n)
        assert made.mount_fd is not None
        os.close(os.open(f"file-{n}", os.O_CREAT | os.O_WRONLY, dir_fd=made.mount_fd))
        return made.mount_fd

    with ThreadPoolExecutor(20) as pool:
        mounts = list(pool.map(create, range(20)))
    try:
        for n, mount in enumerate(mounts):
            assert os.listdir(f"/proc/self/fd/{mount}") == [f"file-{n}"]
            assert os.stat(".", dir_fd=mount).st_uid == UID + n
    finally:
        for mount in mounts:
            os.close(mount)
    eventually(lambda: devices_over(tmp_path) == [], within=10)


def test_a_failed_one_leaves_nothing(workspaces: Workspaces, tmp_path: Path) -> None:
    with pytest.raises(AgentCubeError, match="cannot make a workspace"):
        workspaces.create(tmp_path / "missing", SIZE, UID, UID)
    made = workspaces.create(tmp_path, SIZE, UID, UID)
    assert made.mount_fd is not None
    os.close(made.mount_fd)
    workspaces.destroy(tmp_path)
    (template,) = (tmp_path / "templates").glob(f"*-{SIZE}.img")
    template.write_bytes(b"damaged" * 1000)
    with pytest.raises(DriverFailed, match="mount the workspace"):
        workspaces.create(tmp_path, SIZE, UID, UID)
    assert not (tmp_path / IMAGE).exists()
    eventually(lambda: devices_over(tmp_path) == [], within=10)


def test_a_second_one_in_the_same_folder_is_refused_and_the_first_lives(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    made = workspaces.create(tmp_path, SIZE, UID, UID)
    assert made.mount_fd is not None
    with pytest.raises(DriverFailed, match="File exists"):
        workspaces.create(tmp_path, SIZE, UID, UID)
    assert (tmp_path / IMAGE).exists()
    os.close(made.mount_fd)


def test_sizes_that_nobody_asks_for_again_leave_nothing_behind(
    workspaces: Workspaces, tmp_path: Path
) -> None:
    for number in range(24):
        for size in (SIZE, SIZE + 4096 * (number + 1)):  # one is asked for again and again
            folder = tmp_path / f"{number}-{size}"
            folder.mkdir()
            made = workspaces.create(folder, size, UID, UID)
            assert made.mount_fd is not None
            os.close(made.mount_fd)
    templates = {path.name for path in (tmp_path / "templates").iterdir()}
    assert len(templates) <= 16
    assert f"ext4-1-{SIZE}.img" in templates
