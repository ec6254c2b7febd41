"""Local files: one to read from, and one that appears whole or not at all."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self


def open_local(path: str | os.PathLike[str]) -> BinaryIO:
    """A local file, open for reading. Raises OSError."""
    return Path(path).open("rb")


def is_directory(path: str | os.PathLike[str]) -> bool:
    """Whether there is a directory at a local path."""
    return Path(path).is_dir()


class PartFile:
    """Collects a file beside its destination and renames it there when the block ends well.

    Missing parent directories are made. A destination that exists keeps its permission bits; one that
    is no regular file (a device, a pipe) is written to in place, because it must not be replaced. A symbolic
    link stays, and what it points to is replaced. Writes go to the page cache and block no longer than that.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(os.path.realpath(path))
        self._part: Path | None = None
        self._file: BinaryIO

    def __enter__(self) -> Self:
        mode = _mode_of(self._path)
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError(21, "Is a directory", str(self._path))
        if mode is not None and not stat.S_ISREG(mode):
            self._file = self._path.open("wb")
            return self
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_name(f".{self._path.name[:100]}.{secrets.token_hex(4)}.part")
        self._file = part.open("xb")
        self._part = part
        if mode is not None:
            part.chmod(stat.S_IMODE(mode))
        return self

    def write(self, chunk: bytes) -> int:
        """Append a chunk."""
        return self._file.write(chunk)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
            if kind is None and self._part is not None:
                self._part.replace(self._path)
                self._part = None
        finally:
            if self._part is not None:
                self._part.unlink(missing_ok=True)


def _mode_of(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None
