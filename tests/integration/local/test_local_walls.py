"""From inside a sandbox: one test per line of what hostile code must not be able to do.

And the other way round: with one guard switched off, the probe that stands for it must say so.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.inside.numbers import NUMBERS, number
from agentcube.drivers.local.launch import Sockets
from agentcube.model.sandbox import HostMount
from tests.integration.local import probes
from tests.integration.local.conftest import IS_ROOT, Box, Machine, opened

pytestmark = pytest.mark.anyio

CANARY = "agentcube-canary-5f1d"
SHM_KEY = 0x0AC0BE

needs_root = pytest.mark.skipif(not IS_ROOT, reason="a range of user ids takes root (docs/known-limits.md)")


@pytest.fixture(scope="module")
def host(machine: Machine) -> Iterator[dict[str, Any]]:
    """Things on the host that a sandbox must not notice, and what a probe is told of them."""
    secret = machine.root / "host-secret"
    secret.write_text(CANARY)
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as abstract,
        subprocess.Popen([sys.executable, "-c", "input()", CANARY], stdin=subprocess.PIPE) as process,
    ):
        abstract.bind(f"\0{CANARY}-host")
        abstract.listen()
        yield {
            "numbers": {name: number(name) for name in NUMBERS if number(name) is not None},
            "canary": CANARY,
            "host_pid": process.pid,
            "host_files": [str(secret), str(machine.root), str(Path(__file__)), str(Path.home() / ".ssh")],
            "prefix": os.path.realpath(sys.base_prefix),
            "host_port": tcp.getsockname()[1],
            "host_abstract": f"{CANARY}-host",
            "shm_key": SHM_KEY,
        }
        process.communicate(b"\n")


OTHER = """
import ctypes, os, socket, sys
open("/workspace/secret", "w").write("mine")
open("/tmp/secret", "w").write("mine")
open("/dev/shm/secret", "w").write("mine")
if os.fork() == 0:
    os.setsid()
    ctypes.CDLL(None).shmget(int(sys.argv[1]), 4096, 0o1666)
    a = socket.socket(socket.AF_UNIX); a.bind("\\0" + sys.argv[2]); a.listen()
    t = socket.create_server(("127.0.0.1", 18765))
    devnull = os.open("/dev/null", os.O_RDWR)
    os.write(1, b"up")
    os.dup2(devnull, 1); os.dup2(devnull, 2)
    import signal; signal.pause()
"""


@pytest.fixture(scope="module")
async def other(machine: Machine, driver: LocalDriver, host: dict[str, Any]) -> Box:
    """A second sandbox with secrets and open sockets of its own."""
    box = await machine.box(driver)
    assert await box.python(OTHER, str(SHM_KEY), CANARY) == "up"
    sockets = Sockets.of(machine.root / "run", box.id)
    host |= {"abstract": CANARY, "other_port": 18765, "sockets": [str(sockets.picod), str(sockets.control)]}
    return box


async def verdict(box: Box, probe: str, host: dict[str, Any]) -> str:
    return (await box.python(probes.PRELUDE + probe + probes.END, json.dumps(host))).strip()


@pytest.fixture(autouse=True)
def _server_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTCUBE_TEST_CANARY", CANARY)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("name", sorted(probes.ALL))
async def test_a_sandbox(name: str, box: Box, host: dict[str, Any]) -> None:
    assert await verdict(box, probes.ALL[name], host) == "held"


@pytest.fixture
def lent(machine: Machine) -> HostMount:
    """A folder that a template lends, writable, with a file of the host's first user in it."""
    folder = machine.root / "lent"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    secret = folder / "secret"
    secret.write_text("theirs")
    secret.chmod(0o600)
    os.chown(secret, 1000, 1000)
    return HostMount(source=str(folder), target="/lent", read_only=False)


@needs_root
async def test_a_sandboxs_user_is_nobody_on_the_host(
    machine: Machine, driver: LocalDriver, host: dict[str, Any], lent: HostMount
) -> None:
    box = await machine.box(driver, mounts=(lent,))
    assert await verdict(box, probes.OWNERSHIP, host) == "held"


GUARDS = {
    "seccomp": (
        probes.USER_NAMESPACES,
        probes.IO_URING,
        probes.KEYS,
        probes.SOCKET_FAMILIES,
        probes.TERMINALS,
        probes.PERSONALITY,
    ),
    "landlock": (probes.DEVICE_NODES,),
    "network": (probes.NETWORK,),
}


@pytest.mark.parametrize("guard", sorted(GUARDS))
async def test_probes_notice_a_missing_guard(guard: str, machine: Machine, host: dict[str, Any]) -> None:
    async with opened(machine, off={guard}) as driver:
        box = await machine.box(driver)
        for probe in GUARDS[guard]:
            assert (await verdict(box, probe, host)).startswith("BROKEN"), probe


@needs_root
async def test_the_ownership_probe_notices_missing_id_mapping(
    machine: Machine, host: dict[str, Any], lent: HostMount
) -> None:
    async with opened(machine, off={"uids"}) as driver:
        box = await machine.box(driver, mounts=(lent,))
        assert "reads a file of the host's user" in await verdict(box, probes.OWNERSHIP, host)
