"""Nothing is left: not after a life, not after a failure, not after a crash of the server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import signal
import stat
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from agentcube.drivers.local import processes
from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.records import Record
from agentcube.errors import AgentCubeError, Invalid, StartFailed
from agentcube.model.plan import Seen
from agentcube.model.sandbox import HostMount, Isolation
from agentcube.runtime.keys import RsaSigner
from agentcube.testing.eventually import eventually
from tests.integration.local.conftest import IS_ROOT, TINY, Machine, bare_zygote, made, opened, zygotes

pytestmark = [pytest.mark.anyio, pytest.mark.serial]

HERE = Path(__file__).parent


def descendants() -> set[int]:
    """Processes below this one: the zygote, and every sandbox that was born while it served."""
    parents: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        try:
            if entry.name.isdigit():
                stat_line = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(stat_line[1])
        except OSError:
            continue
    found: set[int] = set()
    todo = [os.getpid()]
    while todo:
        children = [pid for pid, parent in parents.items() if parent == todo[-1]]
        todo.pop()
        found.update(children)
        todo += children
    return found


def count(machine: Machine) -> Counter[str]:
    """What this server holds of the machine, by kind. Other servers may run beside it."""
    found: Counter[str] = Counter()
    for pid in descendants():
        found["processes"] += 1
        for kind in ("user", "net", "mnt", "pid", "ipc"):
            try:
                found[f"{kind} {os.readlink(f'/proc/{pid}/ns/{kind}')}"] = 1
            except OSError:
                continue
    root = str(machine.root)
    found["mounts"] = Path("/proc/self/mountinfo").read_text().count(root)
    found["sockets"] = Path("/proc/net/unix").read_text().count(root)
    found["descriptors"] = len(os.listdir("/proc/self/fd"))
    for base, dirs, files in os.walk(root):
        found["files"] += len(dirs) + len(files) if "images" not in base else 0
    instance = hashlib.sha256(os.fsencode((machine.root / "data").resolve())).hexdigest()[:8]
    for base, dirs, _ in os.walk("/sys/fs/cgroup"):
        found["cgroups"] += len(dirs) if instance in base else 0
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            found["loop devices"] += root in backing.read_text()
        except OSError:
            continue  # freed while we looked
    return found


def by_kind(counted: Counter[str]) -> dict[str, int]:
    """Namespaces as numbers per kind: their names differ from one time to the next."""
    kinds: Counter[str] = Counter()
    for name, number in counted.items():
        kinds[name.split()[0] if "[" in name else name] += number
    return dict(kinds)


@pytest.fixture(scope="module", autouse=True)
def has_lived(machine: Machine) -> None:
    """Folders, skeletons and templates are made once: whichever test comes first must not count them."""

    async def live() -> None:
        async with machine.driver() as driver:
            await driver.destroy((await driver.create(machine.spec())).id)

    asyncio.run(live())


@pytest.fixture(scope="module")
async def driver(signer: RsaSigner) -> AsyncIterator[LocalDriver]:
    """One for tests that make nothing, in folders of its own and without spares: counts stand still."""
    with made(signer) as own:
        async with opened(own, spares=0) as driver:
            yield driver


async def is_as(before: dict[str, int], machine: Machine) -> None:
    """Wait for the machine to hold just that again: the kernel frees some of it a moment later."""
    try:
        await eventually(lambda: by_kind(count(machine)) == before, within=10)
    except TimeoutError:
        assert by_kind(count(machine)) == before  # says what


def stand_in(machine: Machine, function: str) -> LocalDriver:
    """A driver whose PicoD is a function of stand_in.py."""
    return machine.driver(spares=0, entry=f"stand_in:{function}", extra=(HERE / "stand_in.py",))


async def test_after_many_lives_the_machine_holds_what_it_held_before(machine: Machine) -> None:
    async with machine.driver(spares=0) as driver:
        await driver.destroy(
            (await driver.create(machine.spec())).id
        )  # templates and skeletons are made once
        before = by_kind(count(machine))

        async def life() -> None:
            box = await machine.box(driver)
            await box.run("sh", "-c", "sleep 1000 & echo x > /workspace/f")
            await driver.destroy(box.id)

        for _ in range(3):
            async with anyio.create_task_group() as group:
                for _ in range(8):
                    group.start_soon(life)
        assert await driver.inventory() == []
        await is_as(before, machine)


async def test_lives_with_libraries_leave_nothing_nor_do_their_zygotes(machine: Machine) -> None:
    machine.environment()
    outside = by_kind(count(machine))
    async with machine.driver(spares=0) as driver:
        spec = {"environment": TINY, "patient": True}
        await driver.destroy((await driver.create(machine.spec(**spec))).id)
        before = by_kind(count(machine))

        async def life() -> None:
            box = await machine.box(driver, **spec)
            assert box.sandbox.facts["preload"] == "decimal"
            await box.run("sh", "-c", "sleep 1000 &")
            await driver.destroy(box.id)

        for _ in range(2):
            async with anyio.create_task_group() as group:
                for _ in range(6):
                    group.start_soon(life)
        await is_as(before, machine)
        creating = [asyncio.ensure_future(driver.create(machine.spec(**spec))) for _ in range(6)]
        os.kill(zygotes(driver)[0].pid or 0, signal.SIGKILL)
        for sandbox in await asyncio.gather(*creating):
            await driver.destroy(sandbox.id)
        machine.environment(["no_such_module"])
        await driver.destroy((await driver.create(machine.spec(**spec))).id)
        assert zygotes(driver) == []
    await is_as(outside, machine)


async def test_after_a_clean_stop_nothing_of_the_driver_is_left(machine: Machine) -> None:
    before = by_kind(count(machine))
    async with machine.driver() as driver:
        await driver.destroy((await driver.create(machine.spec())).id)
    await is_as(before, machine)
    assert list((machine.root / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("function", "says"),
    [("crash", "it said: Traceback"), ("leave", "did not start"), ("impostor", "another")],
)
async def test_a_picod_that_does_not_start_leaves_nothing(machine: Machine, function: str, says: str) -> None:
    async with stand_in(machine, function) as driver:
        before = by_kind(count(machine))
        with pytest.raises(StartFailed, match=says):
            await driver.create(machine.spec())
        assert await driver.inventory() == []
        await is_as(before, machine)


async def test_a_zygote_that_is_killed_fails_no_start(machine: Machine) -> None:
    """However many had asked it; the first to notice starts the next one, and the others ask that."""
    async with machine.driver(spares=0) as driver:
        await driver.destroy((await driver.create(machine.spec())).id)
        before = by_kind(count(machine))
        for milliseconds in (0, 20, 60):
            creating = [asyncio.ensure_future(driver.create(machine.spec())) for _ in range(10)]
            await asyncio.wait(creating, timeout=milliseconds / 1000, return_when=asyncio.FIRST_COMPLETED)
            os.kill(bare_zygote(driver).pid or 0, signal.SIGKILL)
            for sandbox in await asyncio.gather(*creating):
                await driver.destroy(sandbox.id)
        assert await driver.inventory() == []
        await is_as(before, machine)


async def test_a_create_whose_task_is_cancelled_at_any_moment_leaves_nothing(machine: Machine) -> None:
    """asyncio's own cancellation, of which anyio's shields know nothing: that of asyncio.timeout, too."""
    async with machine.driver(spares=0) as driver:
        await driver.destroy((await driver.create(machine.spec())).id)
        before = by_kind(count(machine))
        for milliseconds in range(0, 40, 2):
            creating = asyncio.ensure_future(driver.create(machine.spec()))
            await asyncio.wait({creating}, timeout=milliseconds / 1000)
            creating.cancel()
            await asyncio.wait({creating})
            if not creating.cancelled():
                await driver.destroy(creating.result().id)
        assert await driver.inventory() == []
        await is_as(before, machine)


async def test_a_create_cancelled_at_any_moment_leaves_nothing(machine: Machine) -> None:
    async with machine.driver(spares=0) as driver:
        await driver.destroy((await driver.create(machine.spec())).id)
        before = by_kind(count(machine))
        for milliseconds in range(0, 40, 2):
            with anyio.move_on_after(milliseconds / 1000) as scope:
                made = await driver.create(machine.spec())
            if not scope.cancelled_caught:
                await driver.destroy(made.id)
        assert await driver.inventory() == []
        await is_as(before, machine)


async def test_a_mount_that_fails_inside_names_the_step_and_leaves_nothing(machine: Machine) -> None:
    folder = machine.root / "folder"
    folder.mkdir(exist_ok=True)
    (folder / "file").touch()
    mounts = (HostMount(source=str(folder), target="/etc/passwd"),)  # a folder over a file
    async with machine.driver() as driver:
        with pytest.raises(StartFailed, match="mount /etc/passwd"):
            await driver.create(machine.spec(mounts=mounts))
        assert await driver.inventory() == []


async def test_a_half_made_sandbox_is_listed_and_destroyed(machine: Machine) -> None:
    async with machine.driver() as driver:
        sandbox = await driver.create(machine.spec(labels={"template": "x"}))
        record = Record.parse(sandbox.handle)
        driver._records.write(replace(record, made=False, pid=0, start=0))  # as a crash in between leaves it
    async with machine.driver() as driver:
        assert await driver.inventory() == [(sandbox.id, {"template": "x"})]
        await driver.destroy(sandbox.id)
        assert await driver.inventory() == []
        left = processes.open_process(record.pid, record.start)
        if IS_ROOT:  # found by its control group, though its pid was not on record
            assert left is None
        elif left is not None:
            # We took the pid off the record. In a real crash a process whose pid is not on record still
            # waits for `go`, and exits because the launcher is gone (test_local_crash.py).
            processes.kill(left)
            os.close(left)


async def test_a_record_that_is_damaged_is_listed_and_destroyed(machine: Machine) -> None:
    async with machine.driver() as driver:
        sandbox = await driver.create(machine.spec())
        (machine.root / "data/sandboxes" / sandbox.id / "sandbox.json").write_text('{"v":1')
        if IS_ROOT:  # its control group still tells what belongs to it
            pidfd = driver._lives.take(sandbox.id)
            assert pidfd is not None
            os.close(pidfd)
        assert await driver.inventory() == [(sandbox.id, {})]
        await driver.destroy(sandbox.id)
        assert await driver.observe(sandbox) is Seen.GONE
        assert await driver.inventory() == []


async def test_a_zygote_that_died_is_replaced_and_its_sandboxes_live_on(machine: Machine) -> None:
    async with opened(machine) as driver:
        first = await machine.box(driver)
        pid = bare_zygote(driver).pid
        assert pid is not None
        os.kill(pid, 9)
        second = await machine.box(driver)
        assert await first.python("print(1)") == await second.python("print(1)") == "1\n"


async def test_files_and_background_processes_outlive_the_server(machine: Machine) -> None:
    async with machine.driver() as driver:
        box = await machine.box(driver)
        await box.run("sh", "-c", "echo kept > /workspace/file; sleep 4321 & echo $! > /workspace/pid")
    async with opened(machine) as driver:
        assert await driver.adopt(box.sandbox) is Seen.ALIVE
        again = replace(box, driver=driver)
        assert await again.python("print(open('/workspace/file').read())") == "kept\n\n"
        found = await again.run("sh", "-c", "tr '\\0' ' ' < /proc/$(cat /workspace/pid)/cmdline")
        assert found["stdout"] == "sleep 4321 "


async def test_a_process_that_took_the_pid_of_a_sandbox_is_not_touched(machine: Machine) -> None:
    async with opened(machine) as driver:
        sandbox = await driver.create(machine.spec())
        record = Record.parse(sandbox.handle)
        await driver.destroy(sandbox.id)
        stranger = processes.start_ticks(os.getpid())
        assert stranger is not None
        driver._records.write(replace(record, pid=os.getpid(), start=stranger - 1, cgroups={}))
        await driver.destroy(sandbox.id)  # we live to tell


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"isolation": Isolation.GVISOR}, "gvisor"),
        ({"image": "ubuntu:24.04"}, "no registry images"),
        ({"image": "dir:/nowhere"}, "/nowhere"),
        ({"mounts": (HostMount(source="/nowhere", target="/data"),)}, "/nowhere"),
        ({"mounts": (HostMount(source="/usr", target="data"),)}, "absolute"),
        ({"mounts": (HostMount(source="/usr", target="/proc/x"),)}, "/proc"),
        ({"mounts": (HostMount(source="/usr", target="/workspace/"),)}, "/workspace"),
    ],
)
async def test_what_cannot_be_is_invalid_and_says_why(
    machine: Machine, driver: LocalDriver, change: dict[str, object], says: str
) -> None:
    with pytest.raises(Invalid, match=re.escape(says)):
        await driver.create(machine.spec(**change))
    assert await driver.inventory() == []


async def test_an_id_that_names_no_folder_is_invalid(machine: Machine, driver: LocalDriver) -> None:
    for id in ("../x", "", "a/b", "A" * 10, "x" * 60):
        with pytest.raises(AgentCubeError, match="not a sandbox id"):
            await driver.create(replace(machine.spec(), id=id))


async def test_template_mounts_are_where_they_should_be(machine: Machine) -> None:
    folder = machine.root / "agent"
    folder.mkdir(exist_ok=True)
    (folder / "main.py").write_text("print('from the host')")
    (folder / "writable").mkdir(exist_ok=True)
    (folder / "writable").chmod(0o777)
    folder.chmod(0o755)
    mounts = (
        HostMount(source=str(folder), target="/app"),
        HostMount(source=str(folder), target="/workspace/sub/app"),
        HostMount(source=str(folder / "main.py"), target="/opt/deep/er/main.py"),
        HostMount(source=str(folder / "writable"), target="/data", read_only=False),
    )
    async with opened(machine) as driver:
        box = await machine.box(driver, mounts=mounts)
        for path in ("/app/main.py", "/workspace/sub/app/main.py", "/opt/deep/er/main.py"):
            assert (await box.run("python3", path))["stdout"] == "from the host\n"
            assert (await box.run("sh", "-c", f"echo x >> {path}"))["exit_code"] != 0
        assert (await box.run("sh", "-c", "echo back > /data/out"))["stderr"] == ""
    assert (folder / "writable/out").read_text() == "back\n"


async def test_a_directory_is_an_image_even_when_its_links_point_out_of_it(machine: Machine) -> None:
    image = machine.root / "image"
    image.mkdir(exist_ok=True)
    image.chmod(0o755)
    for name in ("bin", "lib", "lib64"):
        if not (image / name).is_symlink():
            (image / name).symlink_to(f"usr/{name}")
    if not (image / "tmp").is_symlink():
        (image / "tmp").symlink_to("../../../../outside")  # an image may be hostile
    mounts = (HostMount(source="/usr", target="/usr"),)
    async with opened(machine) as driver:
        box = await machine.box(driver, image=f"dir:{image}", mounts=mounts)
        assert (await box.run("sh", "-c", "echo $PWD"))["stdout"] == "/workspace\n"
    assert not (machine.root.parent / "outside").exists()


def test_nothing_of_ours_is_readable_by_others(machine: Machine) -> None:
    ours: Callable[[Path], int] = lambda path: stat.S_IMODE(path.stat().st_mode)  # noqa: E731
    assert ours(machine.root) == 0o700
