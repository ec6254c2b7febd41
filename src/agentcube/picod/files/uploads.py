"""Files being written: whole under a name of their own, or behind what a file has already.

A request that is cut short discards while a thread may still write: a lock keeps them apart. No
fsync: what a power cut leaves of a sandbox is nobody's, and a rename is atomic without.
"""

from __future__ import annotations

import errno
import os
import stat
import threading

from agentcube.picod import linux
from agentcube.picod.files.entries import HIDDEN, REPLACES, Entry, entry_at
from agentcube.picod.paths import Workspace
from agentcube.picod.problems import Problem

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_APPEND = os.O_WRONLY | os.O_APPEND
_TRIES = 8  # against programs that make and remove the same file all the time


def hidden_name() -> bytes:
    """A name that nobody has, for what is not finished."""
    return HIDDEN + os.urandom(8).hex().encode("ascii")


def put_in_place(
    temporary: bytes, source: int, name: bytes, directory: int, *, exclusive: bool = False
) -> bool:
    """Rename what is finished in `source` to `name` in `directory`; whether that replaced something.

    Raises:
        OSError: FileExistsError when `exclusive` and something has that name. `temporary` is gone then.
    """
    replaced = False
    try:
        if exclusive:
            linux.rename_exclusively(source, temporary, directory, name)
            return False
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
            os.rename(temporary, temporary + REPLACES, src_dir_fd=source, dst_dir_fd=source)
            temporary += REPLACES
            replaced = True
        except FileNotFoundError:
            pass
        os.rename(temporary, name, src_dir_fd=source, dst_dir_fd=directory)
        return replaced
    except OSError:
        os.unlink(temporary, dir_fd=source)
        raise


def link(target: bytes, directory: int, name: bytes, modified_ns: int, *, exclusive: bool = False) -> None:
    """Make a symbolic link, replacing what is no directory unless `exclusive`. Raises OSError."""
    temporary = hidden_name()
    os.symlink(target, temporary, dir_fd=directory)
    os.utime(temporary, ns=(modified_ns, modified_ns), dir_fd=directory, follow_symlinks=False)
    put_in_place(temporary, directory, name, directory, exclusive=exclusive)


class Part:
    """A file being written, under a temporary name. `discard` after use, finished or not.

    `directory` (where the file will be, or any other of the workspace) is the part's from here on.
    """

    def __init__(self, directory: int) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._temporary: bytes | None = hidden_name()
        self.replaced = False
        try:
            self._fd = os.open(self._temporary, _NEW, 0o600, dir_fd=directory)
        except OSError:
            os.close(directory)
            raise

    @property
    def fd(self) -> int:
        """For who copies into it; -1 once discarded."""
        return self._fd

    def append(self, data: bytes) -> None:
        """Write all of `data`; nothing once discarded. Raises OSError."""
        view = memoryview(data)
        with self._lock:
            while view and self._fd >= 0:
                view = view[os.write(self._fd, view) :]

    def finish(
        self,
        names: tuple[bytes, ...],
        mode: int,
        *,
        directory: int | None = None,
        modified_ns: int | None = None,
        exclusive: bool = False,
    ) -> Entry:
        """Give it its mode, its time and its name, the last of `names`, in `directory` (None: its own).

        Raises:
            OSError: FileExistsError when `exclusive` and something has that name; ECANCELED once discarded.
        """
        with self._lock:
            if self._fd < 0 or self._temporary is None:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            os.fchmod(self._fd, mode)
            if modified_ns is not None:
                os.utime(self._fd, ns=(modified_ns, modified_ns))
            found = os.fstat(self._fd)
            target = self._directory if directory is None else directory
            temporary, self._temporary = self._temporary, None
            self.replaced = put_in_place(temporary, self._directory, names[-1], target, exclusive=exclusive)
            return Entry(b"/".join(names), found)

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


class Appending:
    """Bytes that go behind what a file has. `discard` after use: unfinished, they are taken off again.

    Of a known length (`whole`) they are finished with the last one: who sees them all there, having lost
    the answer, may rely on that. `directory` is where the file is, and this object's from here on. `busy`
    are the files (device, inode) that are appended to now: each by one call at a time.
    """

    def __init__(
        self,
        workspace: Workspace,
        names: tuple[bytes, ...],
        directory: int,
        mode: int,
        busy: dict[tuple[int, int], Appending],
        *,
        whole: int | None = None,
    ) -> None:
        self._names = names
        self._directory = directory
        self._busy = busy
        self._lock = threading.Lock()
        self._mode = mode
        self._whole = whole
        self._fd = -1
        try:
            self._fd, self.made = _open_or_make(workspace, names, directory)
            found = os.fstat(self._fd)
            if not stat.S_ISREG(found.st_mode):
                raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
            self._key = (found.st_dev, found.st_ino)
            if busy.setdefault(self._key, self) is not self:
                raise Problem("conflict", "another call is appending to this file")
        except (OSError, Problem):
            if self._fd >= 0:
                os.close(self._fd)
            os.close(directory)
            raise
        self.start = found.st_size
        self._written = 0
        self._finished = False

    def append(self, data: bytes) -> None:
        """Write all of `data`; nothing once discarded. Raises OSError."""
        view = memoryview(data)
        with self._lock:
            while view and self._fd >= 0:
                written = os.write(self._fd, view)
                self._written += written
                view = view[written:]
            if self._fd >= 0 and self._written == self._whole:
                self._keep()

    def finish(self) -> Entry:
        """Keep what was appended."""
        with self._lock:
            if self._fd < 0:
                raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
            self._keep()
            return Entry(b"/".join(self._names), os.fstat(self._fd))

    def _keep(self) -> None:
        if self.made and not self._finished:
            os.fchmod(self._fd, self._mode)
        self._finished = True

    def discard(self) -> None:
        """Close; unfinished, leave the file as it was unless somebody else wrote to it, too. Idempotent."""
        with self._lock:
            if self._fd < 0:
                return
            try:
                if not self._finished and os.fstat(self._fd).st_size == self.start + self._written:
                    self._take_back()
            except OSError:
                pass  # it is the user's file: what they did to it meanwhile is right
            finally:
                del self._busy[self._key]
                os.close(self._fd)
                os.close(self._directory)
                self._fd = -1

    def _take_back(self) -> None:
        os.ftruncate(self._fd, self.start)
        if self.made:
            found = entry_at(self._directory, self._names).found
            if (found.st_dev, found.st_ino) == self._key:
                os.unlink(self._names[-1], dir_fd=self._directory)


def _open_or_make(workspace: Workspace, names: tuple[bytes, ...], directory: int) -> tuple[int, bool]:
    """The file's descriptor, links followed; made where nothing is, and whether so. Raises OSError."""
    for _ in range(_TRIES):
        try:
            return workspace.open(names, _APPEND), False
        except FileNotFoundError:
            pass
        try:
            return os.open(names[-1], _NEW | os.O_APPEND, 0o600, dir_fd=directory), True
        except FileExistsError:
            pass  # made meanwhile, or a link that leads nowhere
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
