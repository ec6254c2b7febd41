"""`kill -9` of the server: sandboxes live on, and nothing else does."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from agentcube.drivers.local import processes
from agentcube.model.ids import SessionId
from agentcube.model.plan import Seen
from agentcube.runtime.keys import RsaSigner
from agentcube.testing.eventually import eventually
from tests.integration.local.conftest import Box, Machine, opened

pytestmark = [pytest.mark.anyio, pytest.mark.serial]

SERVER = """
import json, sys
import anyio, structlog
from pathlib import Path
from agentcube.drivers.local.driver import LocalDriver
from agentcube.model.ids import SandboxId
from agentcube.model.sandbox import SandboxSpec

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    root, key = Path(sys.argv[1]), sys.stdin.readline()
    async with LocalDriver(data_dir=root / "data", runtime_dir=root / "run", env_cache=root / "envs") as driver:
        for number in range(5):
            spec = SandboxSpec(id=SandboxId(f"sb-{number}"), environment="", public_keys=(json.loads(key),))
            print((await driver.create(spec)).handle, flush=True)
        spec = SandboxSpec(id=SandboxId("sb-loaded"), environment="tiny", patient=True)
        print((await driver.create(spec)).handle, flush=True)
        nurseries = driver._launcher.nurseries
        zygotes = [nurseries.bare.zygote, *(warm.nursery.zygote for warm in nurseries._known.values())]
        print(json.dumps([zygote.pid for zygote in zygotes]), flush=True)
        async with anyio.create_task_group() as group:
            for number in range(5, 50):  # so that the kill comes in the middle of some of them
                spec = SandboxSpec(id=SandboxId(f"sb-{number}"), environment="")
                group.start_soon(driver.create, spec)
        await anyio.sleep_forever()

anyio.run(main)
"""


async def test_after_a_kill_sandboxes_live_and_everything_else_is_found(
    machine: Machine, signer: RsaSigner
) -> None:
    machine.environment()
    with machine.server(SERVER) as line:
        kept = [machine.sandbox(line()) for _ in range(5)]
        line()
        zygotes = json.loads(line())
    assert len(zygotes) == 2
    await eventually(lambda: all(processes.start_ticks(zygote) is None for zygote in zygotes))
    async with opened(machine) as driver:
        boxes = []
        for sandbox in kept:
            assert await driver.adopt(sandbox) is Seen.ALIVE
            session = SessionId(f"s-{sandbox.id}")
            await driver.bind(sandbox, signer.for_binding(session, sandbox.id))
            boxes.append(Box(driver, sandbox, session, signer))
        for box in boxes:
            assert await box.python("print(open('/proc/1/comm').read())") == "picod\n\n"
        orphans = {id for id, _ in await driver.inventory()} - {sandbox.id for sandbox in kept}
        for id in orphans:
            await driver.destroy(id)
        assert {id for id, _ in await driver.inventory()} == {sandbox.id for sandbox in kept}
        assert await driver.create(machine.spec())  # its ids are nobody's on record
        bases = [json.loads(s.handle)["uid_base"] for s in kept]
        assert len(set(bases)) == len(bases) or bases[0] is None
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if _is_ours(p, machine)]
    assert left == []


def _is_ours(cmdline: Path, machine: Machine) -> bool:
    """A process that still has one of this machine's files open (root sees all, a user his own)."""
    try:
        return any(
            str(machine.root) in os.readlink(fd) for fd in cmdline.parent.joinpath("fd").iterdir()
        ) and cmdline.parent.name != str(os.getpid())
    except OSError:
        return False


async def test_a_sandbox_of_an_earlier_boot_is_gone_and_can_be_cleared_away(machine: Machine) -> None:
    async with opened(machine) as driver:
        sandbox = await driver.create(machine.spec())
        record = json.loads(sandbox.handle)
        old = replace(sandbox, handle=json.dumps({**record, "boot": "another"}))
        other = machine.driver()
        assert await other.observe(old) is Seen.GONE
