"""`agentcube port-forward`: protocols that are no HTTP/1.1 reach a session's port. A real gRPC server inside."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
import typing_extensions

from agentcube import AgentCube
from tests.e2e import agents
from tests.e2e.harness import CLI, Server

SERVER = """
import sys
sys.path.insert(0, "/agent")
from concurrent.futures import ThreadPoolExecutor
import grpc

def count(request, context):
    for number in range(int(request)):
        yield b"%d" % number

server = grpc.server(ThreadPoolExecutor(4))
handlers = {
    "Say": grpc.unary_unary_rpc_method_handler(lambda request, context: b"you said " + request),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Sum": grpc.stream_unary_rpc_method_handler(lambda requests, context: b"%d" % sum(len(r) for r in requests)),
}
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
assert server.add_insecure_port("127.0.0.1:50051") == 50051
server.start()
server.wait_for_termination()
"""


@pytest.fixture(scope="module")
def session(server: Server, agents_dir: Path) -> Iterator[str]:
    """A session whose agent is a gRPC server."""
    agents.write(agents_dir, "grpc-echo", SERVER)
    folder = agents_dir / "grpc-echo"
    shutil.copytree(Path(grpc.__file__).parent, folder / "grpc", dirs_exist_ok=True)
    shutil.copy(typing_extensions.__file__, folder)
    for path in folder.rglob("*"):
        path.chmod(0o755)
    manifest = agents.manifest("grpc-echo", folder, ["python3", "/agent/agent.py"], port=50051)
    with AgentCube(server.url, server.api_key) as cube:
        cube.templates.apply(manifest)
        made = cube.sessions.create("AgentRuntime", "grpc-echo")
        yield made.id
        cube.sessions.delete(made.id)


@contextmanager
def forwarding(server: Server, *argv: str) -> Iterator[str]:
    """The address that `port-forward` listens on."""
    process = subprocess.Popen(
        [*CLI, "port-forward", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=server.env(),
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("forwarding "), process.communicate()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130


def test_grpc_passes_a_tunnel(server: Server, session: str) -> None:
    with forwarding(server, session, "0:50051") as address, grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(timeout=20)
        say = channel.unary_unary("/test.Echo/Say")
        assert say(b"hello", timeout=20) == b"you said hello"
        assert say(b"x" * 3_000_000, timeout=20) == b"you said " + b"x" * 3_000_000
        numbers = channel.unary_stream("/test.Echo/Count")(b"500", timeout=20)
        assert [int(n) for n in numbers] == list(range(500))
        total = channel.stream_unary("/test.Echo/Sum")(iter([b"x" * 1000] * 100), timeout=20)
        assert total == b"100000"


def test_a_port_that_is_not_declared_closes_the_connection(server: Server, session: str) -> None:
    with forwarding(server, session, "0:22") as address, grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/test.Echo/Say")(b"hello", timeout=20)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["no-such-session", "80"], 1, "there is no session"),
        (["s", "eighty"], 2, "PORT or LOCAL:PORT"),
        (["s", "80:99999"], 2, "PORT or LOCAL:PORT"),
        (["s", "0"], 2, "0 is no port"),
    ],
)
def test_what_cannot_be_forwarded_is_one_line(server: Server, argv: list[str], code: int, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agentcube.cli.main", "port-forward", *argv],
        capture_output=True,
        text=True,
        env=server.env(),
        timeout=60,
    )
    assert (done.returncode, done.stderr.count("\n")) == (code, 1)
    assert says in done.stderr
