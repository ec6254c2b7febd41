"""From inside a sandbox: one test per line of what hostile code must not be able to do.

And the other way round: with one guard switched off, the probe that stands for it must say so.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.inside.numbers import NUMBERS, number
from agentcube.drivers.local.launch import Sockets
from agentcube.errors import Invalid, StartFailed
from agentcube.model.ids import SessionId
from agentcube.model.sandbox import HostMount
from agentcube.runtime.keys import RsaSigner
from tests.integration.local import probes
from tests.integration.local.conftest import (
    IS_ROOT,
    STAND_IN,
    TINY,
    Box,
    Forks,
    Machine,
    bare_zygote,
    made,
    opened,
    zygotes,
)

pytestmark = pytest.mark.anyio

CANARY = f"agentcube-canary-{os.getpid()}"  # abstract sockets of two test processes must not meet
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


@pytest.fixture(scope="module", params=["program", "program of an environment's sandbox", "kernel"])
async def hostile(
    request: pytest.FixtureRequest, machine: Machine, driver: LocalDriver, signer: RsaSigner
) -> AsyncIterator[Box]:
    """Whoever runs the probes: a program, or a process that was forked with an environment's libraries in it."""
    if request.param == "program":
        yield await machine.box(driver)
        return
    machine.environment()
    if request.param != "kernel":
        box = await machine.box(driver, environment=TINY, patient=True)
        assert box.sandbox.facts["preload"] == "decimal"
        yield box
        return
    with made(signer) as another:
        another.environment()
        async with opened(another, **STAND_IN) as stand_in:
            sandbox = await stand_in.create(another.spec(environment=TINY, patient=True))
            yield Forks(stand_in, sandbox, SessionId("none"), signer)


@pytest.mark.usefixtures("other")
@pytest.mark.parametrize("name", sorted(probes.ALL))
async def test_a_sandbox(name: str, hostile: Box, host: dict[str, Any]) -> None:
    assert await verdict(hostile, probes.ALL[name], host) == "held"


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
async def test_probes_notice_a_missing_guard(guard: str, spare: Machine, host: dict[str, Any]) -> None:
    async with opened(spare, off={guard}) as driver:
        box = await spare.box(driver)
        for probe in GUARDS[guard]:
            assert (await verdict(box, probe, host)).startswith("BROKEN"), probe


@needs_root
async def test_the_ownership_probe_notices_missing_id_mapping(
    spare: Machine, host: dict[str, Any], lent: HostMount
) -> None:
    async with opened(spare, off={"uids"}) as driver:
        box = await spare.box(driver, mounts=(lent,))
        assert "reads a file of the host's user" in await verdict(box, probes.OWNERSHIP, host)


@needs_root
@pytest.mark.parametrize("environment", ["", TINY])
async def test_a_zygote_has_given_up_root_and_sees_no_machine(
    environment: str, machine: Machine, driver: LocalDriver
) -> None:
    if environment:
        machine.environment()
        await machine.box(driver, environment=environment, patient=True)
        zygote, sees = zygotes(driver)[0], {"usr", "opt", "etc", "proc", "stage", "tmp", "dev"}
    else:
        zygote, sees = bare_zygote(driver), {"proc", "stage"}
    pid = zygote.pid
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    assert int(status["Uid"].split()[0]) >= 10_000_000
    assert status["Groups"].strip() == ""
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd", "CapInh")] == [0] * 4
    assert status["NoNewPrivs"] == "1"
    assert status["Threads"] == "1"
    root = Path(f"/proc/{pid}/root")
    assert sees <= set(os.listdir(root))
    assert environment or sees == set(os.listdir(root))
    assert not any(
        (root / str(path).lstrip("/")).exists() for path in (Path(__file__), machine.root, "/etc/shadow")
    )
    assert b"AGENTCUBE" not in Path(f"/proc/{pid}/environ").read_bytes()
    mounts = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    writable = {fields[4] for fields in mounts if "ro" not in fields[5].split(",")}
    assert {path for path in writable if not path.startswith(("/dev", "/proc", "/tmp"))} == set()
    for kind in ("mnt", "net", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


@needs_root
async def test_picod_holds_its_sockets_its_log_and_nothing_of_the_host(box: Box, machine: Machine) -> None:
    links = []
    for fd in Path(f"/proc/{box.pid}/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except FileNotFoundError:
            continue  # closed while we looked
    log = f"/data/sandboxes/{box.id}/picod.log"
    known = (
        "/dev/null",
        "socket:",
        "pipe:",
        "anon_inode:[eventpoll]",
        "anon_inode:[signalfd]",
        "anon_inode:[pidfd]",
    )
    ends = (log, "/cgroup.procs", "/memory.events", "/memory.oom_control", "/workspace")
    odd = [name for name in links if not name.startswith(known) and not name.endswith(ends)]
    assert odd == []
    status = Path(f"/proc/{box.pid}/status").read_text()
    assert "CapEff:\t00000000000000e0" in status  # KILL, SETGID, SETUID, in its own user namespace
    assert "Seccomp:\t2" in status
    assert "NoNewPrivs:\t1" in status
    assert Path(f"/proc/{box.pid}/environ").read_bytes() == b""
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{box.pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")


async def test_a_link_out_of_the_directories_for_templates_is_not_followed(spare: Machine) -> None:
    allowed = spare.root / "allowed"
    allowed.mkdir(exist_ok=True)
    allowed.chmod(0o755)
    (allowed / "plain").mkdir(exist_ok=True)
    (allowed / "out").symlink_to("/etc")
    async with opened(spare, host_paths=(allowed,)) as driver:
        plain = HostMount(source=str(allowed / "plain"), target="/data")
        assert (await spare.box(driver, mounts=(plain,))).id
        for wrong in (
            {"mounts": (HostMount(source=str(allowed / "out"), target="/data"),)},
            {"image": f"dir:{allowed / 'out'}"},
            {"image": f"tar:{allowed / 'out/passwd'}"},
        ):
            with pytest.raises((StartFailed, Invalid), match="leads out of the directories"):
                await spare.box(driver, **wrong)


async def test_links_in_a_lent_directory_do_not_lead_mount_points_onto_the_machine(spare: Machine) -> None:
    lent, victim = spare.root / "lent", spare.root / "victim"
    for folder in (lent, victim):
        folder.mkdir()
        folder.chmod(0o755)
    (lent / "out").symlink_to(victim)
    (lent / "file").write_text("")
    outer = HostMount(source=str(lent), target="/workspace/a")
    async with opened(spare) as driver:
        for source, target in ((lent, "/workspace/a/out/made"), (lent / "file", "/workspace/a/out/made")):
            with pytest.raises(StartFailed):
                await spare.box(driver, mounts=(outer, HostMount(source=str(source), target=target)))
    assert os.listdir(victim) == []


@pytest.mark.parametrize("name", ["dev", "proc"])
async def test_an_image_whose_special_directories_are_links_is_refused(spare: Machine, name: str) -> None:
    image, victim = spare.root / f"image-{name}", spare.root / f"victim-{name}"
    for folder in (image, victim):
        folder.mkdir()
        folder.chmod(0o755)
    (image / name).symlink_to(victim)
    (image / str(victim).lstrip("/")).mkdir(parents=True)  # it leads somewhere, in there too
    async with opened(spare) as driver:
        with pytest.raises(StartFailed, match=f"use the image's /{name}"):
            await spare.box(driver, image=f"dir:{image}")
    assert os.listdir(victim) == []
