"""A local directory as a tar stream, made while it is sent, in constant memory."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.sources import CHUNK_BYTES, Progress

_END = bytes(2 * tarfile.BLOCKSIZE)


class TarSource:
    """A directory's content; names are relative to it, links are links, permission bits and times go along.

    Sockets, pipes and devices are left out, and named in `left_out`. A file that shrinks meanwhile ends the request
    with InvalidArgument; what is appended meanwhile is not sent.
    """

    content_type = "application/x-tar"
    seekable = True
    content_length = None

    def __init__(self, root: str | os.PathLike[str], progress: Progress | None = None) -> None:
        self._root = Path(root)
        self._progress = progress
        self._total = sum(
            path.lstat().st_size for path in _walk(self._root) if path.is_file() and not path.is_symlink()
        )
        self._done = 0
        self._pieces: Iterator[bytes] = iter(())
        self.left_out: list[str] = []

    def rewind(self) -> None:
        """Begin."""
        self._done = 0
        self.left_out.clear()
        self._pieces = self._packed()

    def read(self) -> bytes:
        """The next piece, empty at the end."""
        return next(self._pieces, b"")

    def _packed(self) -> Iterator[bytes]:
        for path in _walk(self._root):
            status = path.lstat()
            member = tarfile.TarInfo(path.relative_to(self._root).as_posix())
            member.mode, member.mtime = stat.S_IMODE(status.st_mode) & 0o777, int(status.st_mtime)
            if stat.S_ISREG(status.st_mode):
                with path.open("rb") as file:
                    yield from self._file(file, member, path)
                continue
            if stat.S_ISDIR(status.st_mode):
                member.type = tarfile.DIRTYPE
            elif stat.S_ISLNK(status.st_mode):
                member.type, member.linkname = tarfile.SYMTYPE, os.fspath(path.readlink())
            else:
                self.left_out.append(member.name)
                continue
            yield _header(member)
        yield _END

    def _file(self, file: BinaryIO, member: tarfile.TarInfo, path: Path) -> Iterator[bytes]:
        left = member.size = os.fstat(file.fileno()).st_size
        yield _header(member)
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise InvalidArgument(f"{path} became shorter while it was uploaded")
            left -= len(chunk)
            self._done += len(chunk)
            yield chunk
            if self._progress is not None:
                self._progress(self._done, self._total)
        if member.size % tarfile.BLOCKSIZE:
            yield bytes(-member.size % tarfile.BLOCKSIZE)


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _walk(root: Path) -> Iterator[Path]:
    """Everything below a directory, directories before what is in them. Raises OSError."""
    for folder, names, files in os.walk(root, onerror=_raise):
        names.sort()
        yield from (Path(folder, name) for name in sorted([*names, *files]))


def _raise(error: OSError) -> None:
    raise error
