"""What ordinary programs need works behind the walls."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from agentcube.drivers.local.driver import LocalDriver
from agentcube.model.sandbox import Port
from tests.integration.local.conftest import PYTHON, SMALL, Box, Machine

pytestmark = pytest.mark.anyio

PROGRAMS = {
    "processes and shared memory": """
import multiprocessing, multiprocessing.shared_memory
def work(n): return n * n
if __name__ == "__main__":
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(work, range(4)) == [0, 1, 4, 9]
    block = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
    block.close(); block.unlink()
""",
    "threads": """
import concurrent.futures
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    assert sum(pool.map(int, range(100))) == 4950
""",
    "a pseudo terminal": """
import os, pty
pid, fd = pty.fork()
if pid == 0:
    os.execvp("tty", ["tty"])
assert b"/dev/pts/" in os.read(fd, 100)
""",
    "sockets on both loopbacks": """
import socket, threading
for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
    server = socket.create_server((host, 0), family=family)
    client = socket.create_connection((host, server.getsockname()[1]))
    peer, _ = server.accept()
    peer.sendall(b"x")
    assert client.recv(1) == b"x"
assert socket.getaddrinfo("localhost", 80)
""",
    "unix sockets and file locks": """
import fcntl, os, socket
s = socket.socket(socket.AF_UNIX); s.bind("/tmp/s"); s.listen()
socket.socket(socket.AF_UNIX).connect("/tmp/s")
with open("/workspace/lock", "w") as f: fcntl.flock(f, fcntl.LOCK_EX)
os.makedirs("/workspace/a/b"); os.makedirs("/workspace/c")
open("/workspace/a/b/f", "w").close()
os.rename("/workspace/a/b/f", "/workspace/c/f")
os.link("/workspace/c/f", "/workspace/c/g"); os.symlink("g", "/workspace/c/h"); os.mkfifo("/workspace/c/p")
""",
    "a database": """
import sqlite3
db = sqlite3.connect("/workspace/db"); db.execute("pragma journal_mode=wal")
db.execute("create table t (x)"); db.execute("insert into t values (1)"); db.commit()
""",
    "an event loop": """
import asyncio
async def main():
    done = await asyncio.create_subprocess_exec("true")
    assert await done.wait() == 0
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    async with server: pass
asyncio.run(main())
""",
    "devices": """
import os
open("/dev/null", "w").write("x")
assert open("/dev/zero", "rb").read(2) == b"\\0\\0" and len(open("/dev/urandom", "rb").read(9)) == 9
try: open("/dev/full", "w").write("x")
except OSError: pass
assert os.listdir("/dev/fd") and os.path.exists("/dev/stdin") and os.cpu_count()
""",
    "who and where": """
import getpass, os, pwd, platform
assert (os.getcwd(), os.environ["HOME"], os.environ["USER"]) == ("/workspace", "/workspace", "sandbox")
assert getpass.getuser() == "sandbox" and pwd.getpwuid(os.getuid()).pw_dir == "/workspace"
assert platform.node() == "sandbox" and open("/proc/self/status").read() and open("/proc/meminfo").read()
""",
}


@pytest.fixture(scope="module")
async def box(machine: Machine, driver: LocalDriver) -> Box:
    return await machine.box(driver)


@pytest.mark.parametrize("what", sorted(PROGRAMS))
async def test_programs_can_use(what: str, box: Box) -> None:
    answer = await box.run(PYTHON, "-I", "-S", "-W", "ignore", "-c", PROGRAMS[what])
    assert answer["exit_code"] == 0, answer["stderr"]


async def test_a_command_serves_its_port_and_can_be_dialled(machine: Machine, driver: LocalDriver) -> None:
    command = (PYTHON, "-m", "http.server", "8080", "--bind", "127.0.0.1", "--directory", "/workspace")
    spec = machine.spec(command=command, ports=(Port(port=8080),), env={"COLOUR": "green"})
    sandbox = await driver.create(spec)
    await driver.ready(sandbox, timeout=timedelta(seconds=20))
    reader, writer = await asyncio.open_connection(sock=await driver.dial(sandbox, 8080))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.0 200")
    await reader.read()
    writer.close()
    await writer.wait_closed()
    usage = await driver.usage(sandbox)
    assert usage.pids is not None
    assert usage.pids >= 2
    assert usage.memory_bytes is not None
    assert usage.memory_bytes > 1 << 20
    await driver.destroy(sandbox.id)


async def test_the_templates_environment_reaches_programs(machine: Machine, driver: LocalDriver) -> None:
    box = await machine.box(driver, env={"COLOUR": "green", "PATH": "/usr/bin"})
    done = await box.run("sh", "-c", "echo $COLOUR $PATH")
    assert done["stdout"] == "green /usr/bin\n"
    await driver.destroy(box.id)


async def test_facts_tell_what_holds(machine: Machine, box: Box, driver: LocalDriver) -> None:
    facts = dict(box.sandbox.facts)
    assert facts.pop("preload") == "none"  # it has no environment
    offered = (await driver.capabilities()).facts
    assert {key: offered[key] for key in facts} == facts
    assert facts["limits"] in ("cgroup", "rlimit")
    assert facts["uid"] in ("range", "subordinate", "single")
    assert (facts["quota"], facts["network"], facts["seccomp"]) == ("hard", "none", "allow-list")
    if facts["workspace"] == "disk":
        assert (
            machine.root / "data/sandboxes" / box.id / "workspace.img"
        ).stat().st_size == SMALL.workspace_bytes
        assert "/dev/loop" in Path(f"/proc/{box.pid}/mounts").read_text()
