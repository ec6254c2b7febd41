"""Real sandboxes on this machine, reached as the Router reaches them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from agentcube.drivers import daemon
from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.environments import Environments
from agentcube.drivers.local.zygote import Zygote
from agentcube.model.ids import SandboxId, SessionId, new_sandbox_id, new_session_id
from agentcube.model.sandbox import Endpoint, Isolation, Resources, Sandbox, SandboxSpec
from agentcube.ports.tokens import Subject
from agentcube.runtime.keys import RsaSigner

PYTHON = str(getattr(sys, "_base_executable", sys.executable))
"""An interpreter that is in every sandbox of `image: host`: the one that the server runs on."""

SMALL = Resources(
    cpu_millis=1000, memory_bytes=256 << 20, pids_max=64, workspace_bytes=32 << 20, tmp_bytes=16 << 20
)

IS_ROOT = os.geteuid() == 0

TINY = "tiny"
"""An environment with nothing in it but what tests put there; its zygote starts in a moment."""


@pytest.fixture(scope="session")
def signer() -> RsaSigner:
    return RsaSigner(generate_private_key(public_exponent=65537, key_size=2048))


HERE = Path(__file__).parent
STAND_IN = {
    "entry": "stand_in:run",
    "fork_server": "stand_in_kernels",
    "extra": (HERE / "stand_in.py", HERE / "stand_in_kernels.py"),
}
"""A PicoD of a few lines that hands programs on to a fork server of a few lines."""


@dataclass
class Machine:
    """A server's directories; opening the driver again on them is a restart of the server."""

    root: Path
    signer: RsaSigner

    def driver(self, **more: Any) -> LocalDriver:
        return LocalDriver(
            data_dir=self.root / "data", runtime_dir=self.root / "run", env_cache=self.root / "envs", **more
        )

    def environment(self, preload: Sequence[str] = ("decimal",), *, name: str = TINY, **modules: str) -> Path:
        """Make one, with these modules (source by name), of which it preloads `preload`."""
        environments = Environments(self.root / "envs")
        requirements = self.root / "requirements.txt"
        requirements.write_text("")
        path = environments.create(TINY, requirements, preload=[])
        folder = next(path.glob("lib/python3*/site-packages"))
        for module, source in modules.items():
            (folder / f"{module}.py").write_text(source)
        definition = self.root / "envs" / f"{TINY}.json"  # not by `create`, which would try the modules
        definition.write_text(json.dumps(json.loads(definition.read_text()) | {"preload": list(preload)}))

    def spec(self, **more: Any) -> SandboxSpec:
        given = {"environment": "", "resources": SMALL, "public_keys": self.signer.public_keys, **more}
        return SandboxSpec(id=new_sandbox_id(), **given)

    @contextmanager
    def server(self, program: str) -> Iterator[Callable[[], str]]:
        """Runs `program` in a process of its own on these directories; gives its lines. In the end it is killed.

        It is told the directory as an argument, and the key to trust by its first line of input.
        """
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(self.root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": ":".join(p for p in sys.path if p)},
            cwd=Path(__file__).parents[3],
        )
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(self.signer.public_keys[0]) + "\n")
            process.stdin.flush()
            yield process.stdout.readline
            process.kill()

    def sandbox(self, handle: str) -> Sandbox:
        """The record that a store would have kept."""
        id = SandboxId(json.loads(handle)["id"])
        picod = Endpoint(scheme="unix", path=str(self.root / "run" / f"{id}.sock"))
        return Sandbox(id=id, driver="local", handle=handle, isolation=Isolation.NAMESPACE, picod=picod)

    async def box(self, driver: LocalDriver, **more: Any) -> Box:
        spec = self.spec(**more)
        sandbox = await driver.create(spec)
        session = new_session_id()
        await driver.bind(sandbox, self.signer.for_binding(session, spec.id))
        return Box(driver, sandbox, session, self.signer)


@dataclass
class Box:
    """A bound sandbox, and how its session runs things in it."""

    driver: LocalDriver
    sandbox: Sandbox
    session: SessionId
    signer: RsaSigner

    @property
    def id(self) -> SandboxId:
        return self.sandbox.id

    @property
    def pid(self) -> int:
        """Its process 1, on the host."""
        return pid_of(self.sandbox)

    async def run(self, *argv: str, timeout: str = "30s", **more: Any) -> dict[str, Any]:
        token = self.signer.for_sandbox(self.session, self.id, Subject("tester"))
        status, answer = await daemon.call(
            await self.driver.dial(self.sandbox),
            b"POST",
            b"/api/execute",
            {"command": list(argv), "timeout": timeout, **more},
            headers=[(b"authorization", b"Bearer " + token.encode())],
            timeout_s=60,
        )
        assert status == 200, answer
        return answer

    async def python(self, code: str, *argv: str, **more: Any) -> str:
        """What the program printed; it must succeed."""
        answer = await self.run(PYTHON, "-I", "-S", "-c", code, *argv, **more)
        assert answer["exit_code"] == 0, answer["stderr"] + answer["stdout"]
        return str(answer["stdout"])


class Forks(Box):
    """Runs programs in processes forked from a fork server that has an environment's libraries loaded."""

    async def python(self, code: str, *argv: str, **more: Any) -> str:
        program = f"import sys\nsys.argv = {['-c', *argv]!r}\n{code}"
        return await self._ask(b"/fork", program)

    async def executed(self, *argv: str) -> str:
        """What a program printed that was started as any other."""
        return await self._ask(b"/run", list(argv))

    async def _ask(self, target: bytes, what: object) -> str:
        _, answer = await daemon.call(
            await self.driver.dial(self.sandbox), b"POST", target, what, timeout_s=60
        )
        return str(answer["stdout"])


def bare_zygote(driver: LocalDriver) -> Zygote:
    """The one that has no environment."""
    return driver._launcher.nurseries.bare.zygote


def zygotes(driver: LocalDriver) -> list[Zygote]:
    """Those of environments, the longest unused first."""
    known = sorted(driver._launcher.nurseries._known.values(), key=lambda warm: warm.used_at)
    return [warm.nursery.zygote for warm in known if warm.nursery is not None]


def pid_of(sandbox: Sandbox) -> int:
    """A sandbox's process 1, on the host."""
    pid = json.loads(sandbox.handle)["pid"]
    assert isinstance(pid, int)
    return pid


@contextmanager
def made(signer: RsaSigner) -> Iterator[Machine]:
    # Not pytest's tmp_path: its sockets' names would be too long.
    root = Path(tempfile.mkdtemp(prefix="ac-"))
    yield Machine(root, signer)
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def machine(signer: RsaSigner) -> Iterator[Machine]:
    with made(signer) as machine:
        yield machine


@pytest.fixture
def spare(signer: RsaSigner) -> Iterator[Machine]:
    """Another one, for tests that open the driver in a way of their own."""
    with made(signer) as machine:
        yield machine


@asynccontextmanager
async def opened(machine: Machine, off: Collection[str] = (), **more: Any) -> AsyncIterator[LocalDriver]:
    """The driver on this machine; what a test leaves is destroyed."""
    async with machine.driver(off=off, **more) as driver:
        try:
            yield driver
        finally:
            for id, _ in await driver.inventory():
                await driver.destroy(id)


@pytest.fixture(scope="module")
async def driver(machine: Machine) -> AsyncIterator[LocalDriver]:
    async with opened(machine) as driver:
        yield driver


@pytest.fixture(scope="module")
async def box(machine: Machine, driver: LocalDriver) -> Box:
    """One sandbox for all tests of a file that do not harm it."""
    return await machine.box(driver)
