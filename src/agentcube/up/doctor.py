"""`agentcube doctor`: what this machine can and cannot do, each with the remedy."""

from __future__ import annotations

import dataclasses
import json
import sys

from rich.console import Console
from rich.table import Table

from agentcube.drivers.local.doctor import Check, checks

_MARKS = {True: "[green]yes[/]", False: "[red]no[/]", None: "[yellow]?[/]"}


def doctor(output: str = "table") -> int:
    """Print every check. Returns 0 when all that sandboxes need is there, else 1."""
    results = checks()
    if output == "json":
        json.dump([dataclasses.asdict(check) for check in results], sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        Console(soft_wrap=True).print(_table(results))
    return 1 if any(check.required and check.ok is False for check in results) else 0


def _table(results: list[Check]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("what", "", "found", "what to do"):
        table.add_column(title, overflow="fold")
    for check in results:
        name = f"{check.name} (needed)" if check.required else check.name
        table.add_row(name, _MARKS[check.ok], check.detail, "" if check.ok else check.remedy)
    return table
