"""Where the driver cannot work it says what is missing and what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.local.conftest import Machine

SCRIPT = """
import anyio, sys
from pathlib import Path
from agentcube.drivers.local.driver import LocalDriver
from agentcube.errors import AgentCubeError
from agentcube.model.ids import new_sandbox_id
from agentcube.model.sandbox import SandboxSpec

async def main():
    root = Path(sys.argv[1])
    try:
        async with LocalDriver(data_dir=root / "data2", runtime_dir=root / "run2", env_cache=root / "envs") as driver:
            sandbox = await driver.create(SandboxSpec(id=new_sandbox_id(), environment=""))
            print("made", sandbox.facts["uid"])
            await driver.destroy(sandbox.id)
    except AgentCubeError as exc:
        print(exc.code, exc.detail)

anyio.run(main)
"""


def run_in_user_namespace(machine: Machine, setup: str) -> str:
    """What the script says as root of a fresh user namespace, after `setup`."""
    if shutil.which("unshare") is None:
        pytest.skip("needs util-linux' unshare to take something away")
    command = ["unshare", "-Ur", "sh", "-c", f'{setup}; exec "$@"', "sh"]
    done = subprocess.run(
        [*command, sys.executable, "-c", SCRIPT, str(machine.root)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), "PATH": "/usr/bin:/bin:/usr/sbin"},
        cwd=Path(__file__).parents[3],
    )
    return done.stdout + done.stderr


def test_without_user_namespaces_the_remedy_is_named(machine: Machine) -> None:
    said = run_in_user_namespace(machine, "echo 0 > /proc/sys/user/max_user_namespaces")
    assert said.startswith(("start_failed", "capacity_exhausted")), said
    assert "sysctl" in said
    assert list((machine.root / "run2").glob("*.sock")) == []


def test_root_without_ids_to_give_works_like_no_root(machine: Machine) -> None:
    assert run_in_user_namespace(machine, ":").strip() == "made single"
