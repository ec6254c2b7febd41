"""`agentcube doctor`: what this machine can and cannot do, each with the remedy."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys

from rich.console import Console
from rich.table import Table

from agentcube.drivers.local.doctor import Check, checks
from agentcube.errors import AgentCubeError
from agentcube.up.stores import EMBEDDED, redis_address

_MARKS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]?[/]"}


def doctor(output: str = "table", store: str = EMBEDDED) -> int:
    """Print every check. Returns 0 when all that sandboxes and the store need is there, else 1."""
    results = [*checks(), _store(store)]
    if output == "json":
        json.dump([dataclasses.asdict(check) for check in results], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        Console(soft_wrap=True).print(_table(results))
    return 1 if any(check.required and check.ok is False for check in results) else 0


def _store(where: str) -> Check:
    if where == EMBEDDED:
        detail = "sessions are kept in SQLite, in the data directory; try another with --store redis://…"
        return Check(name="store", ok=True, detail=detail)
    try:
        address, settings = redis_address(where)
        from agentcube.stores.redis.examine import examine

        return Check(name="store", ok=True, detail=asyncio.run(examine(address, settings)), required=True)
    except AgentCubeError as exc:
        remedy = "docs/how-to/use-redis.md says what a server must be and allow"
        return Check(name="store", ok=False, detail=exc.detail, remedy=remedy, required=True)


def _table(results: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("what", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in results:
        name = f"{check.name} (needed)" if check.required else check.name
        table.add_row(name, _MARKS[check.ok], check.detail, "" if check.ok else check.remedy)
    return table
