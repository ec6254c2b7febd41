"""A Router as one would write it with FastAPI and an httpx client (fastapi_app.py), on uvicorn with uvloop."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

from benchmarks.router.peers import Given, Proxy, launch

NAME = "FastAPI + httpx"


def start(stack: ExitStack, given: Given) -> Proxy:
    said = json.dumps({"sandboxes": given.sandboxes, "public_key": given.public_key})
    command = (sys.executable, "-m", "benchmarks.router.peers.fastapi_app")
    process = launch(stack, command, input=said.encode() + b"\n")
    assert process.stdout is not None
    return Proxy(NAME, process.pid, int(process.stdout.readline()))
