"""`!command` in a cell, and the installers that are refused there."""

from __future__ import annotations

import shutil
import subprocess

INSTALLERS = ("pip", "conda", "mamba", "micromamba", "uv")
NO_INSTALLER = (
    "nothing is installed into a running sandbox: list the packages in a requirements file, build an environment "
    "from it (agentcube env create NAME FILE), and name it in the template (environment: NAME)"
)


def run(line: str) -> int:
    """Run a line by bash where there is one, else by sh, on the kernel's own stdout and stderr.

    Returns the exit code, 128+n for a shell that signal n ended.
    """
    try:
        code = subprocess.call(line, shell=True, executable=shutil.which("bash"))  # noqa: S602  (the user's line)
    except KeyboardInterrupt:
        raise KeyboardInterrupt from None  # the cell's line says where; how we waited is nobody's concern
    return 128 - code if code < 0 else code
