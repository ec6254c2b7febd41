"""File work of `/api/files`, blocking: called in PicoD's worker threads, as the user (fsuid).

A file appears whole or not at all: it is written under a name of its own beside its target, and
renamed. No fsync: what a power cut leaves of a sandbox is nobody's, and the rename is atomic without.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from dataclasses import dataclass
from typing import NoReturn

from agentcube.picod.paths import PathRefused, Workspace
from agentcube.picod.problems import Problem

MODE_DEFAULT = 0o644
LIST_MAX = 10_000
_PART = b".agentcube-part-"  # what is being written; not listed


@dataclass(frozen=True)
class Entry:
    """What a listing tells of one file; `path` is relative to the workspace (or to the directory listed)."""

    path: str
    size: int
    mode: int
    modified: float


class OpenFile:
    """A regular file, open for reading. `close` may come while a read is still under way in a thread."""

    def __init__(self, fd: int, found: os.stat_result) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self.size = found.st_size
        self.modified_ns = found.st_mtime_ns
        self.etag = f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"'

    def read(self, count: int, offset: int) -> bytes:
        """At most `count` bytes from `offset`; b"" at the end, on an error of the disk, or once closed."""
        with self._lock:
            try:
                return os.pread(self._fd, count, offset) if self._fd >= 0 else b""
            except OSError:
                return b""

    def close(self) -> None:
        """Close. Idempotent."""
        with self._lock:
            fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Files:
    """Files of one workspace. Every path is the caller's text, as bytes; every error a `Problem`."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def begin(self, path: bytes | None) -> Part:
        """Start writing a file. `path` None: not known yet, `Part.finish` says it.

        Raises:
            Problem: `invalid` for a path that leads out or is a directory; else as `_refuse`.
        """
        names = () if path is None else self._names(path)
        if path is not None and not names:
            raise Problem("invalid", "the path is the workspace itself: name a file")
        try:
            directory = self._workspace.make_directories(names[:-1])
        except OSError as exc:
            _refuse(exc, path or b"")
        try:
            return Part(self._workspace, directory, names)
        except OSError as exc:
            os.close(directory)
            _refuse(exc, path or b"")

    def finish(self, part: Part, path: bytes, mode: int) -> Entry:
        """Put the written file in its place, replacing what is there."""
        names = self._names(path)
        if not names or path.endswith((b"/", b"/.")):
            raise Problem("invalid", "the path is a directory: name a file")
        try:
            return part.finish(names, mode)
        except OSError as exc:
            _refuse(exc, path)

    def write(self, path: bytes, content: bytes, mode: int) -> Entry:
        """A whole file in one go."""
        part = self.begin(path)
        try:
            self.append(part, content)
            return self.finish(part, path, mode)
        finally:
            part.discard()

    def append(self, part: Part, data: bytes) -> None:
        """Add `data` to a file being written."""
        try:
            part.append(data)
        except OSError as exc:
            _refuse(exc, b"")

    def list(self, path: bytes) -> tuple[list[Entry], bool]:
        """The entries of a directory by name, links not followed, and whether there are more than listed."""
        try:
            fd = self._workspace.open(self._names(path), os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            raise Problem("invalid", f"{_shown(path)} is no directory") from None
        except OSError as exc:
            _refuse(exc, path)
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
            names = [name for name in names if not name.startswith(_PART)]
            entries = []
            for name in names[:LIST_MAX]:
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed meanwhile
                entries.append(_entry((name,), found))
            return entries, len(names) > LIST_MAX
        except OSError as exc:
            _refuse(exc, path)
        finally:
            os.close(fd)

    def open(self, path: bytes) -> OpenFile:
        """A regular file for reading; the descriptor is the caller's to close."""
        try:
            fd = self._workspace.open(self._names(path), os.O_RDONLY)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a socket
                raise Problem("invalid", f"{_shown(path)} is no regular file") from None
            _refuse(exc, path)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise Problem("invalid", f"{_shown(path)} is {kind}")
        return OpenFile(fd, found)

    def _names(self, path: bytes) -> tuple[bytes, ...]:
        try:
            return self._workspace.clean(path)
        except PathRefused as exc:
            raise Problem("invalid", f"{_shown(path)}: {exc}") from None


class Part:
    """A file being written, under a temporary name. `discard` after use, finished or not.

    A request that is cut short discards while a thread may still write: the lock keeps them apart.
    """

    def __init__(self, workspace: Workspace, directory: int, names: tuple[bytes, ...]) -> None:
        self._workspace = workspace
        self._directory = directory
        self._planned = names[:-1]
        self._lock = threading.Lock()
        self._temporary: bytes | None = _PART + os.urandom(8).hex().encode("ascii")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o600, dir_fd=directory)

    def append(self, data: bytes) -> None:
        """Write all of `data`; nothing once discarded."""
        view = memoryview(data)
        with self._lock:
            while view and self._fd >= 0:
                view = view[os.write(self._fd, view) :]

    def finish(self, names: tuple[bytes, ...], mode: int) -> Entry:
        """Rename to `names`, in another directory than planned if these say so."""
        with self._lock:
            if self._fd < 0 or self._temporary is None:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            os.fchmod(self._fd, mode)
            found = os.fstat(self._fd)
            if names[:-1] == self._planned:
                self._rename(names[-1], self._directory)
            else:
                target = self._workspace.make_directories(names[:-1])
                try:
                    self._rename(names[-1], target)
                finally:
                    os.close(target)
            return _entry(names, found)

    def _rename(self, name: bytes, directory: int) -> None:
        assert self._temporary is not None
        os.rename(self._temporary, name, src_dir_fd=self._directory, dst_dir_fd=directory)
        self._temporary = None

    def discard(self) -> None:
        """Close everything; remove what was not finished. Idempotent."""
        with self._lock:
            if self._fd < 0:
                return
            os.close(self._fd)
            self._fd = -1
            try:
                if self._temporary is not None:
                    os.unlink(self._temporary, dir_fd=self._directory)
            except OSError:
                pass  # the user may have moved or removed it
            finally:
                os.close(self._directory)


def parse_mode(text: str) -> int:
    """Permission bits from octal text such as "0644". Problem when it is none."""
    if (
        not text.isascii()
        or not text.isdigit()
        or len(text) > 5
        or set(text) & {"8", "9"}
        or int(text, 8) > 0o777
    ):
        raise Problem("invalid", f'mode {text[:16]!r} must be octal permissions such as "0644"')
    return int(text, 8)


def _entry(names: tuple[bytes, ...], found: os.stat_result) -> Entry:
    path = b"/".join(names).decode("utf-8", "surrogateescape")
    return Entry(path, found.st_size, found.st_mode, found.st_mtime_ns / 1e9)


def _shown(path: bytes) -> str:
    return repr(path.decode("utf-8", "replace")[:256])


def _refuse(exc: OSError, path: bytes) -> NoReturn:
    """The problem that an error of the file system is to the caller."""
    shown = _shown(path)
    number = exc.errno
    reason = os.strerror(number or 0)
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise Problem(
            "workspace_full", "no space left in the workspace: delete files, or ask for a larger one"
        ) from exc
    if number == errno.ENOENT:
        raise Problem("file_not_found", f"{shown} does not exist in the workspace") from exc
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise Problem("forbidden", f"{shown}: {reason}") from exc
    if number == errno.EFBIG:
        raise Problem("body_too_large", f"{shown}: {reason}") from exc
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise Problem("unavailable", reason) from exc
    known = (
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.EXDEV,
        errno.EEXIST,
        errno.ENOTEMPTY,
    )
    if number in known:
        raise Problem("invalid", f"{shown}: {reason}") from exc
    raise exc
