"""The proxies beside which the Router is measured: one module each, with what it does of the Router's work.

A module has NAME and `start(stack, given)`, which raises Absent when there is nothing to start.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

WHEELS = Path(__file__).parent.parent / ".peers"  # where `make bench-router` puts requirements/bench.txt
SANDBOX_TOKEN = "Bearer " + "t" * 600  # as long as the ones that our Router signs

FORWARDED = ("forwarded", "x-forwarded-prefix", "x-forwarded-port", "x-real-ip")
"""Client copies that are dropped, beside those that are replaced."""


class Absent(Exception):
    """Why a peer cannot be measured here."""


@dataclass(frozen=True)
class Given:
    """What a proxy is told: a folder of its own, the sandboxes' ports, and who its clients are."""

    folder: Path
    sandboxes: list[int]
    tokens: dict[str, str]
    public_key: str


@dataclass(frozen=True)
class Proxy:
    """A running proxy; all of it is one process. pid 0: nothing is between load and sandbox."""

    name: str
    pid: int
    port: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def launch(
    stack: ExitStack,
    command: Sequence[str],
    *,
    input: bytes = b"",
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that ends with `stack`. `input` is written to its standard input, which stays open."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=cwd, env=env)
    stack.callback(stop, process)
    if input:
        assert process.stdin is not None
        process.stdin.write(input)
        process.stdin.flush()
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:
                pass


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Until somebody listens there. Raises Absent when nobody will."""
    give_up = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > give_up or process.poll() is not None:
                raise Absent(f"{process.args!r} does not start") from None
            time.sleep(0.02)


def wheel(path: str) -> str:
    """A program out of a wheel. Raises Absent."""
    found = WHEELS / path
    if not os.access(found, os.X_OK):
        raise Absent(
            f"{path} is not there: requirements/bench.txt is not installed, or has no wheel for this machine"
        )
    return str(found)
