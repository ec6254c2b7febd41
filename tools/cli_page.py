"""Makes docs/reference/cli.md from the command line itself. `--check`: only say whether it differs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
WIDTH = 100
HELP = ["-h", "--help"]

HEAD = """<!-- Made by tools/cli_page.py from the program. Do not edit. -->
# Command line

`agentcube` finds its server by `--url` and `--api-key`, else by `AGENTCUBE_URL` and `AGENTCUBE_API_KEY`, else by
`ROUTER_URL` and `WORKLOAD_MANAGER_URL`, else by the file that `agentcube up` writes in the user's config directory.

Exit codes: 0 done · 1 the operation failed · 2 bad usage or input, or no connection · 130 interrupted. `run`, `exec`,
`shell` and `attach` end with the exit code of the program inside: 128+n for signal n, 124 for a timeout. Errors are one
line on standard error.
"""


def sections(command: Any, context: typer.Context, title: str, level: int) -> Iterator[str]:
    """The help of a command and of those below it."""
    yield f"\n{'#' * level} {title}\n\n```text\n{command.get_help(context).strip()}\n```\n"
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        below = command.get_command(context, name)
        inner = below.context_class(
            below, info_name=name, parent=context, terminal_width=WIDTH, help_option_names=HELP
        )
        yield from sections(below, inner, f"{title} {name}", min(level + 1, 3))


def page() -> str:
    """The whole page."""
    from agentcube.cli.main import app

    command = typer.main.get_command(app)
    context = command.context_class(
        command, info_name="agentcube", terminal_width=WIDTH, max_content_width=WIDTH, help_option_names=HELP
    )
    lines = "".join([HEAD, *sections(command, context, "agentcube", 2)]).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` say whether it is stale and return 1."""
    text = page()
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text("utf-8") == text:
            return 0
        print(f"{PAGE.name} is not what tools/cli_page.py makes; run it", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
