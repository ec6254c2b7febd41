"""`agentcube env`: Python environments for `image: host`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from agentcube.drivers.local.environments import Environments
from agentcube.errors import AgentCubeError, Invalid
from agentcube.up.paths import env_cache_dir


def env_list(output: str = "table") -> int:
    """Print the environments of this user. Returns the exit code."""
    found = Environments(env_cache_dir()).list()
    if output == "json":
        rows = [
            {
                "name": e.name,
                "built": e.path is not None,
                "requirements": e.requirements,
                "preload": list(e.preload),
            }
            for e in found
        ]
        print(json.dumps(rows, indent=2))  # noqa: T201
        return 0
    width = max(len(e.name) for e in found)
    for e in found:
        state = "built    " if e.path else "not built"
        print(f"{e.name:{width}}  {state}  {' '.join(e.requirements.split())}")  # noqa: T201
    return 0


def env_create(name: str, requirements: Path | None = None, preload: Sequence[str] | None = None) -> int:
    """Define environment `name` from a requirements file and build it, or build one that is defined already.

    `preload`: modules that kernels find imported; ["none"] for none, None for the usual ones.
    """

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201

    environments = Environments(env_cache_dir())
    try:
        if requirements is None:
            if preload:
                raise Invalid("--preload says what to do with new requirements: give --requirements too")
            environments.ensure(name, progress)
        else:
            environments.create(name, requirements, progress, preload=[] if preload == ["none"] else preload)
    except AgentCubeError as exc:
        print(f"error: {exc.detail}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"environment {name} is ready")  # noqa: T201
    return 0
