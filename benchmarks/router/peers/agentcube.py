"""Our own Router, on uvloop or on plain asyncio."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks.router.peers import Given, Proxy, launch

NAME = "AgentCube Router"


def start(
    stack: ExitStack, given: Given, *, loop: str = "uvloop", http2: bool = False, tree: Path | None = None
) -> Proxy:
    """`tree`: another checkout, whose Router it is to be."""
    said = json.dumps(
        {"sandboxes": given.sandboxes, "public_key": given.public_key, "loop": loop, "http2": http2}
    )
    command = (sys.executable, "-m", "benchmarks.router.subject")
    environment = {"PYTHONPATH": f"{tree}/src"} if tree else {}
    process = launch(stack, command, input=said.encode() + b"\n", cwd=tree, env={**os.environ, **environment})
    assert process.stdout is not None
    name = f"{NAME}, {tree}" if tree else f"{NAME}, {loop}"
    return Proxy(name, process.pid, int(process.stdout.readline()))
