"""Real sandboxes on this machine, reached as the Router reaches them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from agentcube.drivers import daemon
from agentcube.drivers.local.driver import LocalDriver
from agentcube.model.ids import SandboxId, SessionId, new_sandbox_id, new_session_id
from agentcube.model.sandbox import Resources, Sandbox, SandboxSpec
from agentcube.ports.tokens import Subject
from agentcube.runtime.keys import RsaSigner

PYTHON = str(getattr(sys, "_base_executable", sys.executable))
"""An interpreter that is in every sandbox of `image: host`: the one that the server runs on."""

SMALL = Resources(
    cpu_millis=1000, memory_bytes=256 << 20, pids_max=64, workspace_bytes=32 << 20, tmp_bytes=16 << 20
)

IS_ROOT = os.geteuid() == 0


@pytest.fixture(scope="session")
def signer() -> RsaSigner:
    return RsaSigner(generate_private_key(public_exponent=65537, key_size=2048))


@dataclass
class Machine:
    """A server's directories; opening the driver again on them is a restart of the server."""

    root: Path
    signer: RsaSigner

    def driver(self, **more: Any) -> LocalDriver:
        return LocalDriver(
            data_dir=self.root / "data", runtime_dir=self.root / "run", env_cache=self.root / "envs", **more
        )

    def spec(self, **more: Any) -> SandboxSpec:
        given = {"environment": "", "resources": SMALL, "public_keys": self.signer.public_keys, **more}
        return SandboxSpec(id=new_sandbox_id(), **given)

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
