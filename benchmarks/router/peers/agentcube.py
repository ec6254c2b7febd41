"""Our own Router, on uvloop or on plain asyncio."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

from benchmarks.router.peers import Given, Proxy, launch

NAME = "AgentCube Router"


def start(stack: ExitStack, given: Given, *, loop: str = "uvloop", http2: bool = False) -> Proxy:
    said = json.dumps(
        {"sandboxes": given.sandboxes, "public_key": given.public_key, "loop": loop, "http2": http2}
    )
    command = (sys.executable, "-m", "benchmarks.router.subject")
    process = launch(stack, command, input=said.encode() + b"\n")
    assert process.stdout is not None
    return Proxy(f"{NAME}, {loop}", process.pid, int(process.stdout.readline()))
