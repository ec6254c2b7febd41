"""Sandboxes born with an environment's libraries loaded; and born all the same where that goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agentcube.drivers.local import processes
from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.environments import DEFAULT, USUAL, Environments
from agentcube.model.ids import SessionId
from agentcube.model.plan import Seen
from agentcube.model.sandbox import HostMount
from agentcube.testing.eventually import eventually
from tests.integration.local.conftest import (
    IS_ROOT,
    STAND_IN,
    TINY,
    Forks,
    Machine,
    made,
    opened,
    pid_of,
    zygotes,
)

pytestmark = pytest.mark.anyio

LOADED, NOT_LOADED = "decimal", "none"


def children(pid: int) -> list[int]:
    """In the order in which they were born: the fork server is the first, PicoD's helpers come later."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def born(machine: Machine, driver: LocalDriver, **more: Any) -> str:
    """What a new sandbox has loaded; it works, and is gone."""
    box = await machine.box(driver, **{"environment": TINY, **more})
    assert await box.python("print(6 * 7)") == "42\n"
    await driver.destroy(box.id)
    return box.sandbox.facts["preload"]


SELF = """
import decimal, json, locale, os, signal, sys
import xml.dom.minidom, sqlite3
print(json.dumps({
    "paths": [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.executable, sys.path, decimal.__file__,
              xml.dom.minidom.__file__, sqlite3.__file__],
    "flags": list(sys.flags),
    "environ": {k: v for k, v in os.environ.items() if k != "_"}, "cwd": os.getcwd(),
    "text": [sys.getfilesystemencoding(), locale.getpreferredencoding(), sys.stdout.encoding],
    "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
    "signals": [str(signal.getsignal(n)) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE)],
    "ours": [name for name in sys.modules if name.startswith("agentcube.")],
}))
"""


@pytest.fixture(scope="module")
async def forks(machine: Machine) -> AsyncIterator[Forks]:
    """One sandbox with a fork server that a test can talk to; its environments are `machine`'s."""
    machine.environment()
    with made(machine.signer) as own:
        (own.root / "envs").symlink_to(machine.root / "envs")
        async with opened(own, **STAND_IN) as driver:
            sandbox = await driver.create(own.spec(environment=TINY, patient=True))
            yield Forks(driver, sandbox, SessionId("none"), machine.signer)


async def test_a_fork_is_like_any_python_of_the_sandbox(forks: Forks) -> None:
    """Code cannot tell, but for the libraries that are there: paths, environment, signals, imports to come."""
    forked = json.loads(await forks.python(SELF))
    executed = json.loads(await forks.executed("python3", "-c", SELF))
    assert forked == executed
    assert forked["paths"][0] == "/opt/agentcube/env"


async def test_libraries_are_loaded_before_the_fork(forks: Forks) -> None:
    assert await forks.python("import sys; print('decimal' in sys.modules)") == "True\n"
    assert await forks.python("print(len(__import__('os').listdir('/proc/self/task')))") == "1\n"


@pytest.mark.skipif(not IS_ROOT, reason="as an ordinary user there are no control groups, and one id")
async def test_the_fork_server_is_a_process_of_the_users(forks: Forks) -> None:
    server = children(pid_of(forks.sandbox))[0]
    picod = pid_of(forks.sandbox)
    status = Path(f"/proc/{server}/status").read_text()
    assert f"Uid:\t{json.loads(forks.sandbox.handle)['uid_base'] + 1000}" in status
    assert "CapPrm:\t0000000000000000" in status
    assert os.stat(f"/proc/{server}/mem").st_uid != 0  # dumpable, as every program is
    assert os.stat(f"/proc/{picod}/mem").st_uid == 0
    links = {os.readlink(fd).partition("[")[0] for fd in Path(f"/proc/{server}/fd").iterdir()}
    assert links == {"/dev/null", "socket:"}
    groups = [Path(f"/proc/{pid}/cgroup").read_text() for pid in (server, picod)]
    assert "/user" in groups[0]
    assert groups[0] != groups[1]


async def test_picod_survives_the_end_of_its_fork_server(machine: Machine) -> None:
    machine.environment()
    async with opened(machine) as driver:
        box = await machine.box(driver, environment=TINY, patient=True)
        server = children(box.pid)[0]
        await box.run("sh", "-c", "kill -9 -1")
        await eventually(lambda: server not in children(box.pid))
        assert await box.python("print('alive')") == "alive\n"


async def test_a_start_does_not_wait_for_libraries_unless_it_is_patient(machine: Machine) -> None:
    machine.environment(["slow"], slow="import time; time.sleep(0.5)")
    async with opened(machine) as driver:
        assert await born(machine, driver) == NOT_LOADED
        assert await born(machine, driver, patient=True) == "slow"
        assert await born(machine, driver) == "slow"


async def test_libraries_that_take_for_ever_hold_nothing_up(machine: Machine) -> None:
    machine.environment(["slow"], slow="import time; time.sleep(300)")
    async with opened(machine) as driver:
        assert await born(machine, driver) == NOT_LOADED
        await eventually(lambda: driver._launcher.nurseries._starting is not None)
        assert await born(machine, driver) == NOT_LOADED
        began = time.monotonic()
    assert time.monotonic() - began < 20  # the server's end does not wait for them


BAD = {
    "raises": "raise RuntimeError('no')",
    "exits": "raise SystemExit",
    "ends its process": "import os; os._exit(3)",
    "crashes": "import ctypes; ctypes.string_at(0)",
    "starts a thread": "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "talks for ever": "while True: print('x' * 99999, flush=True)",
    "talks nonsense": "import os, sys; os.write(int(sys.argv[-1]), b'nonsense')",
    "closes what it does not know": "import os; os.closerange(3, 100)",
    "breaks what births need": "import json; json.loads = None",
    "breaks what PicoD needs": "import asyncio; asyncio.run = None",
}


@pytest.mark.parametrize("what", sorted(BAD))
async def test_a_library_fails_no_start_when_it(
    what: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.environment(["bad"], bad=BAD[what])
    async with opened(machine) as driver:
        assert await born(machine, driver, patient=True) == NOT_LOADED
        assert zygotes(driver) == []
        assert await born(machine, driver) == NOT_LOADED
    assert "environment not loaded" in capsys.readouterr().out


async def test_a_zygote_that_is_killed_fails_no_start_and_is_replaced(machine: Machine) -> None:
    machine.environment()
    async with opened(machine, spares=0) as driver:
        assert await born(machine, driver, patient=True) == LOADED
        first = zygotes(driver)[0].pid
        assert first is not None
        creating = [asyncio.ensure_future(driver.create(machine.spec(environment=TINY))) for _ in range(6)]
        os.kill(first, signal.SIGKILL)
        for sandbox in await asyncio.gather(*creating):
            assert await driver.observe(sandbox) is Seen.ALIVE

        async def loaded() -> bool:
            return await born(machine, driver, patient=True) == LOADED

        await eventually(loaded, within=30)
        assert zygotes(driver)[0].pid != first


async def test_its_sandboxes_outlive_a_zygote(machine: Machine) -> None:
    machine.environment()
    async with opened(machine) as driver:
        box = await machine.box(driver, environment=TINY, patient=True)
        os.kill(zygotes(driver)[0].pid or 0, signal.SIGKILL)
        assert await box.python("print('alive')") == "alive\n"
        assert processes.start_ticks(children(box.pid)[0]) is not None


async def test_only_so_many_environments_are_loaded_at_once(machine: Machine) -> None:
    """The one that was not used for longest goes; its sandboxes stay."""
    async with opened(machine, environments=2) as driver:
        machine.environment(["decimal"])
        box = await machine.box(driver, environment=TINY, patient=True)
        for module, kept in (
            ("fractions", ["decimal", "fractions"]),
            ("decimal", ["fractions", "decimal"]),
            ("statistics", ["decimal", "statistics"]),
        ):
            machine.environment([module])
            assert await born(machine, driver, patient=True) == module
            assert [zygote.home.modules[0] for zygote in zygotes(driver) if zygote.home] == kept
        assert await box.python("print('alive')") == "alive\n"


async def test_an_idle_one_ends(machine: Machine) -> None:
    machine.environment()
    async with opened(machine, environments_idle_s=0.2) as driver:
        await born(machine, driver, patient=True)
        await eventually(lambda: zygotes(driver) == [])
        assert await born(machine, driver, patient=True) == LOADED


async def test_none_are_loaded_where_none_are_wanted(machine: Machine) -> None:
    machine.environment()
    async with opened(machine, environments=0) as driver:
        assert await born(machine, driver, patient=True) == NOT_LOADED
    machine.environment([])
    async with opened(machine) as driver:
        assert await born(machine, driver, patient=True) == NOT_LOADED


async def test_what_a_template_lends_is_there_with_libraries_or_without(machine: Machine) -> None:
    """Without root an environment's zygote sees nothing but its image, so what is lent has to do without it."""
    machine.environment()
    folder = machine.root / "lent"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "file").write_text("lent")
    mounts = (HostMount(source=str(folder), target="/data"),)
    async with opened(machine) as driver:
        box = await machine.box(driver, environment=TINY, mounts=mounts, patient=True)
        assert await box.python("print(open('/data/file').read())") == "lent\n"
        assert box.sandbox.facts["preload"] == (LOADED if IS_ROOT else NOT_LOADED)


@pytest.mark.timeout(900)
async def test_the_default_environment_is_loaded_whole(spare: Machine) -> None:
    """With the real kernel host, on the machine's own libraries."""
    root = Environments().ensure(DEFAULT, print).parent
    driver = LocalDriver(data_dir=spare.root / "data", runtime_dir=spare.root / "run", env_cache=root)
    async with driver:
        sandbox = await driver.create(spare.spec(environment=DEFAULT, patient=True))
        try:
            assert sandbox.facts["preload"] == ",".join(USUAL)
            server = children(pid_of(sandbox))[0]
            assert processes.start_ticks(server) is not None
        finally:
            await driver.destroy(sandbox.id)
