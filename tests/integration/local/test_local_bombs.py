"""What a sandbox can use up is its own: processes, memory, disk, descriptors, output."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agentcube.drivers.local.driver import LocalDriver
from agentcube.model.plan import Seen
from agentcube.testing.eventually import eventually
from tests.integration.local.conftest import SMALL, Box, Machine

pytestmark = pytest.mark.anyio

FORK_BOMB = """
import os, sys, time
def grow():
    while True:
        try:
            if os.fork() == 0:
                os.setsid()
        except OSError:
            time.sleep(0.001)
if os.fork() == 0:
    grow()
time.sleep(1)
"""

MEMORY_BOMB = """
held = []
while True:
    held.append(bytearray(b"x") * (8 << 20))
"""

FILL = """
import errno, os, sys
written = 0
with open(sys.argv[1] + "/big", "wb", buffering=0) as file:
    try:
        while True:
            written += file.write(b"x" * (1 << 20))
    except OSError as exc:
        print(errno.errorcode[exc.errno], written)
os.unlink(sys.argv[1] + "/big")
"""

MANY_FILES = """
import errno, sys
made = 0
try:
    while made < 1_000_000:
        open(f"{sys.argv[1]}/f{made}", "x").close()
        made += 1
    print("no end", made)
except OSError as exc:
    print(errno.errorcode[exc.errno], made)
"""


@pytest.fixture
async def box(machine: Machine, driver: LocalDriver) -> AsyncIterator[Box]:
    """A sandbox of its own for each bomb, and a neighbour that must not notice."""
    box, neighbour = await machine.box(driver), await machine.box(driver)
    yield box
    assert await driver.observe(box.sandbox) is Seen.ALIVE
    assert await box.python("print('alive')") == "alive\n"
    assert await neighbour.python("print('unharmed')") == "unharmed\n"
    await driver.destroy(box.id)
    await driver.destroy(neighbour.id)


def processes_of_sandbox(box: Box) -> int:
    """Host processes below its process 1."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parents[int(name)] = int(Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, todo = 0, [box.pid]
    while todo:
        pid = todo.pop()
        found += 1
        todo += [child for child, parent in parents.items() if parent == pid]
    return found


async def test_a_fork_bomb_that_was_left_behind_stays_inside(machine: Machine, driver: LocalDriver) -> None:
    box, neighbour = await machine.box(driver), await machine.box(driver)
    answer = await box.run("python3", "-c", FORK_BOMB, timeout="20s")
    assert answer["exit_code"] == 0  # so its background processes live on
    assert processes_of_sandbox(box) <= SMALL.pids_max + 8
    assert await driver.adopt(box.sandbox) is Seen.ALIVE  # PicoD answers
    assert await neighbour.python("print('unharmed')") == "unharmed\n"
    await driver.destroy(box.id)
    assert await driver.observe(box.sandbox) is Seen.GONE
    await driver.destroy(neighbour.id)


async def test_a_fork_bomb_that_runs_into_its_timeout_is_dead_altogether(box: Box) -> None:
    answer = await box.run(
        "python3", "-c", FORK_BOMB.replace("time.sleep(1)", "time.sleep(99)"), timeout="1s"
    )
    assert answer["exit_code"] == 124
    await eventually(lambda: processes_of_sandbox(box) <= 4)  # PicoD and what it keeps; the dead are reaped


async def test_a_memory_bomb_is_killed_and_picod_is_not(box: Box) -> None:
    answer = await box.run("python3", "-c", MEMORY_BOMB, timeout="20s")
    assert answer["exit_code"] in (1, 137)  # the kernel's or PicoD's kill, or a MemoryError
    assert answer["duration"] < 19


@pytest.mark.parametrize(
    ("folder", "size"), [("/workspace", SMALL.workspace_bytes), ("/tmp", SMALL.tmp_bytes)]
)
async def test_a_full_disk_is_the_sandboxs_own(folder: str, size: int, box: Box) -> None:
    before = os.statvfs("/tmp").f_bavail * os.statvfs("/tmp").f_frsize
    error, written = (await box.python(FILL, folder)).split()
    assert error == "ENOSPC"
    assert size * 0.8 <= int(written) <= size
    assert await box.python(f"open('{folder}/again', 'w').write('x')") == ""
    after = os.statvfs("/tmp").f_bavail * os.statvfs("/tmp").f_frsize
    assert before - after < 2 * size + (64 << 20)


@pytest.mark.parametrize("folder", ["/workspace", "/tmp", "/dev/shm"])
async def test_files_are_limited_in_number_too(folder: str, box: Box) -> None:
    error, made = (await box.python(MANY_FILES, folder)).split()
    assert error == "ENOSPC"
    assert 0 < int(made) < 100_000


async def test_signals_to_everybody_leave_picod_alive(box: Box) -> None:
    await box.run("kill", "-9", "-1")
    await box.run("sh", "-c", "kill -9 1; kill -STOP 1; kill -TERM 1")
