"""Writes docs/reference/syscalls.md from the table that the seccomp filter is made of.

`--check` writes nothing and exits 1 when the page is not what the table says.
"""

from __future__ import annotations

import sys
from pathlib import Path

from agentcube.drivers.local.inside.numbers import number
from agentcube.drivers.local.inside.syscalls import ALLOWED, CHECKED, REFUSED, Group

PAGE = Path(__file__).parents[1] / "docs/reference/syscalls.md"

INTRO = """\
<!-- Made by tools/syscalls_page.py from src/agentcube/drivers/local/inside/syscalls.py: do not edit. -->

# System calls in a sandbox

Every process in a sandbox of the local driver, PicoD included, runs under one seccomp filter: an
allow-list. It cannot be taken off. There is one table for x86-64 and arm64; a name that a machine does
not have is left out there (¹: x86-64 only).

* What is **allowed** is listed with the reason.
* What is **refused** answers `EPERM`: it exists, and the answer is no.
* Anything else answers `ENOSYS`, as on a kernel without it, so that programs fall back to what is allowed.
* Calls of another architecture (32-bit programs on x86-64) end the process; x32 calls answer `ENOSYS`.

The filter is one wall of several: namespaces, user ids, capabilities, Landlock and control groups hold
without it too.
"""


def page() -> str:
    """The page's text."""
    parts = [INTRO, "\n## Allowed with conditions\n\n| call | condition |\n|---|---|\n"]
    parts += [f"| {_name(name)} | {text} |\n" for name, text in sorted(CHECKED.items())]
    parts += ["\n## Allowed\n", *map(_section, ALLOWED), "\n## Refused\n", *map(_section, REFUSED)]
    return "".join(parts)


def _section(group: Group) -> str:
    names = ", ".join(_name(name) for name in sorted(group.names))
    return f"\n### {group.title}\n\n{group.why}\n\n{names}.\n"


def _name(name: str) -> str:
    return f"`{name}`" + ("" if number(name, "aarch64") is not None else "¹")


def main() -> int:
    if "--check" in sys.argv[1:]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page():
            return 0
        print(f"{PAGE} is out of date: run python tools/syscalls_page.py", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
