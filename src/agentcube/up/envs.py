"""`agentcube env`: Python environments for `image: host`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agentcube.drivers.local.environments import Environments
from agentcube.errors import AgentCubeError
from agentcube.up.paths import env_cache_dir


def env_list(output: str = "table") -> int:
    """Print the environments of this user. Returns the exit code."""
    found = Environments(env_cache_dir()).list()
    if output == "json":
        rows = [{"name": e.name, "built": e.path is not None, "requirements": e.requirements} for e in found]
        print(json.dumps(rows, indent=2))  # noqa: T201
        return 0
    width = max(len(e.name) for e in found)
    for e in found:
        state = "built    " if e.path else "not built"
        print(f"{e.name:{width}}  {state}  {' '.join(e.requirements.split())}")  # noqa: T201
    return 0


def env_create(name: str, requirements: Path | None = None) -> int:
    """Define environment `name` from a requirements file and build it, or build one that is defined already."""

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    environments = Environments(env_cache_dir())
    try:
        if requirements is None:
            environments.ensure(name, progress)
        else:
            environments.create(name, requirements, progress)
    except AgentCubeError as exc:
        print(f"error: {exc.detail}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"environment {name} is ready")  # noqa: T201
    return 0
