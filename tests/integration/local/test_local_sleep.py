"""Frozen sandboxes: nothing in them moves, nothing is lost, and the kernel can still be told to end them."""

from __future__ import annotations

import asyncio
import os
import signal
import socket

import pytest

from agentcube.drivers import daemon
from agentcube.drivers.local import sandboxgroup
from agentcube.drivers.local.driver import LocalDriver
from agentcube.drivers.local.sandboxgroup import SandboxCgroup
from agentcube.errors import DriverFailed, Unreachable
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Port, Sandbox
from agentcube.testing.eventually import eventually
from tests.integration.local.conftest import PYTHON, Machine, opened

pytestmark = pytest.mark.anyio

COUNTER = """
import http.server, threading, time
count = 0
def forever():
    global count
    while True:
        count += 1
        time.sleep(0.001)
threading.Thread(target=forever, daemon=True).start()
class Count(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = str(count).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Count).serve_forever()
"""
FORKS = """
import os, sys
for _ in range(20):
    if os.fork() == 0:
        while True:
            if os.fork() == 0: os._exit(0)
            os.wait()
os.close(1); os.close(2)
os.wait()
"""
SERVER = """
import json, sys
import anyio
from pathlib import Path
from agentcube.drivers.local.driver import LocalDriver
from agentcube.model.ids import SandboxId
from agentcube.model.sandbox import SandboxSpec

async def main():
    root, key = Path(sys.argv[1]), json.loads(sys.stdin.readline())
    async with LocalDriver(data_dir=root / "data", runtime_dir=root / "run", env_cache=root / "envs") as driver:
        sandbox = await driver.create(SandboxSpec(id=SandboxId("sb-asleep"), environment="", public_keys=(key,)))
        await driver.suspend(sandbox, fence=1)
        print(sandbox.handle, flush=True)
        await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.fixture(scope="module")
async def sleeper(machine: Machine, driver: LocalDriver) -> LocalDriver:
    offered = await driver.capabilities()
    if not offered.suspend:
        pytest.skip(offered.cannot_suspend)
    return driver


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """The count, over a connection that stays open."""
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return int(await reader.readexactly(length))


async def test_everything_stands_still_and_goes_on_from_there(machine: Machine, sleeper: LocalDriver) -> None:
    spec = machine.spec(command=(PYTHON, "-I", "-S", "-c", COUNTER), ports=(Port(port=8080),))
    sandbox = await sleeper.create(spec)
    reader, writer = await asyncio.open_connection(sock=await dialled(sleeper, sandbox))
    first = await ask(reader, writer)
    await sleeper.suspend(sandbox, fence=1)
    before = await sleeper.usage(sandbox)
    asked = asyncio.ensure_future(ask(reader, writer))  # waits in the socket
    await asyncio.sleep(0.3)
    after = await sleeper.usage(sandbox)
    assert not asked.done()
    assert before.cpu_s == after.cpu_s
    assert after.memory_bytes is not None
    assert after.memory_bytes > 1 << 20  # all of it is kept
    await sleeper.resume(sandbox, fence=1)
    async with asyncio.timeout(20):
        assert await asked >= first  # the same program, the same connection
    writer.close()
    await writer.wait_closed()
    await sleeper.destroy(sandbox.id)


async def dialled(driver: LocalDriver, sandbox: Sandbox) -> socket.socket:
    """A connection to the counter, once it listens."""
    for _ in range(200):
        try:
            return await driver.dial(sandbox, 8080)
        except Unreachable:
            await asyncio.sleep(0.05)
    raise AssertionError("the counter does not listen")


async def test_a_command_under_way_ends_after_the_thaw(machine: Machine, sleeper: LocalDriver) -> None:
    box = await machine.box(sleeper)
    running = asyncio.ensure_future(box.python("input(); print('woke')", stdin="x\n"))
    await asyncio.sleep(0)
    # Before, within or after its start: it is the client that must not notice.
    await sleeper.suspend(box.sandbox, fence=1)
    await asyncio.sleep(0.2)
    await sleeper.resume(box.sandbox, fence=1)
    assert await running == "woke\n"
    await sleeper.destroy(box.id)


async def test_programs_that_fork_without_end_are_frozen_and_killed_too(
    machine: Machine, sleeper: LocalDriver
) -> None:
    box = await machine.box(sleeper)
    answer = await box.run("sh", "-c", f"{PYTHON} -I -S -c '{FORKS}' >/dev/null 2>&1 &")
    assert answer["exit_code"] == 0
    await sleeper.suspend(box.sandbox, fence=1)
    pids = (await sleeper.usage(box.sandbox)).pids
    await asyncio.sleep(0.1)
    assert (await sleeper.usage(box.sandbox)).pids == pids
    await sleeper.resume(box.sandbox, fence=1)
    await sleeper.suspend(box.sandbox, fence=1)
    await sleeper.destroy(box.id)
    assert await sleeper.observe(box.sandbox) is Seen.GONE


async def test_a_sandbox_killed_in_its_sleep_is_gone_and_leaves_nothing(
    machine: Machine, sleeper: LocalDriver
) -> None:
    box = await machine.box(sleeper)
    await sleeper.suspend(box.sandbox, fence=1)
    os.kill(box.pid, signal.SIGKILL)

    async def gone() -> bool:
        return await sleeper.observe(box.sandbox) is Seen.GONE

    await eventually(gone, within=20)
    with pytest.raises(Unreachable):
        await sleeper.resume(box.sandbox, fence=1)
    await sleeper.destroy(box.id)
    assert box.id not in {id for id, _ in await sleeper.inventory()}


async def test_a_server_killed_while_a_sandbox_sleeps_finds_it_again(
    spare: Machine, sleeper: LocalDriver
) -> None:
    with spare.server(SERVER) as line:
        sandbox = spare.sandbox(line())
    async with opened(spare) as driver:
        assert [id for id, _ in await driver.inventory()] == [sandbox.id]
        assert await driver.adopt(sandbox) is Seen.ALIVE
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await daemon.health(await driver.dial(sandbox))
        await driver.resume(sandbox, fence=1)
        assert (await daemon.health(await driver.dial(sandbox))).sandbox_id == sandbox.id


async def test_a_kernel_that_does_not_freeze_in_time_leaves_it_awake(
    machine: Machine, sleeper: LocalDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = await machine.box(sleeper)
    monkeypatch.setattr(sandboxgroup, "_FREEZE_WITHIN_S", 0.0)
    monkeypatch.setattr(SandboxCgroup, "is_frozen", lambda group: False)
    with pytest.raises(DriverFailed, match="did not freeze"):
        await sleeper.suspend(box.sandbox, fence=1)
    assert await box.python("print('awake')") == "awake\n"
    await sleeper.destroy(box.id)
