"""The zip that the zygote runs: PicoD and what is inside a sandbox, and nothing else of ours."""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import agentcube

_SOURCE = Path(agentcube.__file__).parent

_EMPTY_PACKAGES = ("", "drivers", "drivers/local")
"""Packages that are only a way to what is below them; their own code belongs to the server."""

_PARTS = ("durations.py", "http1", "kernelhost", "picod", "drivers/local/inside")

_MAIN = "from agentcube.drivers.local.inside.zygote import main\n\nmain()\n"


def build(target: Path, extra: Sequence[Path] = ()) -> Path:
    """Write the zip to `target`, replacing what is there, and return it.

    `extra` are modules of tests, put at its top. Uncompressed: it is read once, from memory.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=".bundle-", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as file, zipfile.ZipFile(file, "w") as archive:
            archive.writestr("__main__.py", _MAIN)
            for package in _EMPTY_PACKAGES:
                archive.writestr("/".join(filter(None, ("agentcube", package, "__init__.py"))), "")
            for path in _modules():
                archive.write(path, "agentcube/" + path.relative_to(_SOURCE).as_posix())
            for path in extra:
                archive.write(path, path.name)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    return target


def _modules() -> Iterator[Path]:
    for part in _PARTS:
        path = _SOURCE / part
        if path.is_dir():
            yield from sorted(path.rglob("*.py"))
        else:
            yield path
