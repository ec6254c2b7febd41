"""One file at a time: what is done to it in one go. Paths are the caller's text, as bytes; errors are Problems."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union

from agentcube.picod import linux
from agentcube.picod.files.entries import HIDDEN, Entry, entry_at, refuse, shown
from agentcube.picod.files.uploads import Appending, Part
from agentcube.picod.paths import PathRefused, Workspace
from agentcube.picod.problems import Problem

MODE_DEFAULT = 0o644
DIRECTORY_MODE_DEFAULT = 0o755
LIST_MAX = 10_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Upload = Union[Part, Appending]


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
    """Files of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._appending: dict[tuple[int, int], Appending] = {}

    def names(self, path: bytes) -> tuple[bytes, ...]:
        """The names that `path` means; () is the workspace itself. Problem when it leads out."""
        try:
            return self.workspace.clean(path)
        except PathRefused as exc:
            raise Problem("invalid", f"{shown(path)}: {exc}") from None

    def names_of_one(self, path: bytes) -> tuple[bytes, ...]:
        """As `names`; the workspace itself is refused, too."""
        names = self.names(path)
        if not names:
            raise Problem("invalid", "the path is the workspace itself: name what is in it")
        return names

    @contextmanager
    def directory_of(self, names: tuple[bytes, ...], *, make: bool = False) -> Iterator[int]:
        """The directory that the last of `names` is in, made with `make`; errors in here are problems."""
        try:
            if make:
                fd = self.workspace.make_directories(names[:-1])
            else:
                fd = self.workspace.open(names[:-1], os.O_PATH | os.O_DIRECTORY)
            try:
                yield fd
            finally:
                os.close(fd)
        except OSError as exc:
            refuse(exc, b"/".join(names))

    # Writing

    def begin(self, path: bytes | None) -> Part:
        """Start writing a file. `path` None: not known yet, `finish` says it."""
        names = () if path is None else self.names(path)
        if path is not None and not names:
            raise Problem("invalid", "the path is the workspace itself: name a file")
        try:
            return Part(self.workspace.make_directories(names[:-1]))
        except OSError as exc:
            refuse(exc, path or b"")

    def finish(self, part: Part, begun: bytes | None, path: bytes, mode: int) -> Entry:
        """Put the written file in its place, replacing what is there. `begun` is what `begin` was told."""
        names = self._names_of_file(path)
        try:
            if begun is not None and self.names(begun)[:-1] == names[:-1]:
                return part.finish(names, mode)
            with self.directory_of(names, make=True) as directory:
                return part.finish(names, mode, directory=directory)
        except OSError as exc:
            refuse(exc, path)

    def write(self, path: bytes, content: bytes, mode: int) -> Entry:
        """A whole file in one go."""
        part = self.begin(path)
        try:
            self.add(part, content)
            return self.finish(part, path, path, mode)
        finally:
            part.discard()

    def begin_put(self, path: bytes, *, parents: bool, exclusive: bool) -> Part:
        """Start writing a file whose name is known."""
        names = self._names_of_file(path)
        with self.directory_of(names, make=parents) as directory:
            try:
                found = os.stat(names[-1], dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                if exclusive:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                if stat.S_ISDIR(found.st_mode):
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            return Part(os.dup(directory))

    def finish_put(self, part: Part, path: bytes, mode: int, *, exclusive: bool) -> Entry:
        """Put it in its place: in the directory that was there when it began."""
        try:
            return part.finish(self.names(path), mode, exclusive=exclusive)
        except OSError as exc:
            refuse(exc, path)

    def begin_append(
        self,
        path: bytes,
        mode: int,
        *,
        parents: bool,
        exclusive: bool,
        offset: int | None,
        whole: int | None = None,
    ) -> Appending:
        """Start appending `whole` bytes (None: as many as come) to a file, made with `mode` where there is none.

        Raises:
            Problem: also `conflict` when the file has not `offset` bytes, or is appended to already.
        """
        names = self._names_of_file(path)
        with self.directory_of(names, make=parents) as directory:
            appending = Appending(
                self.workspace, names, os.dup(directory), mode, self._appending, whole=whole
            )
            try:
                if exclusive and not appending.made:
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
                if offset is not None and offset != appending.start:
                    raise Problem(
                        "conflict",
                        f"{shown(path)} has {appending.start} bytes, not {offset}",
                        size=appending.start,
                    )
            except (OSError, Problem):
                appending.discard()
                raise
            return appending

    def finish_append(self, appending: Appending, path: bytes) -> Entry:
        """Keep what was appended."""
        try:
            return appending.finish()
        except OSError as exc:
            refuse(exc, path)

    def add(self, upload: Upload, data: bytes) -> None:
        """Add `data` to a file being written."""
        try:
            upload.append(data)
        except OSError as exc:
            refuse(exc, b"")

    def _names_of_file(self, path: bytes) -> tuple[bytes, ...]:
        names = self.names(path)
        if not names or path.endswith((b"/", b"/.")):
            raise Problem("invalid", "the path is a directory: name a file")
        return names

    # Reading

    def list(self, path: bytes) -> tuple[list[Entry], bool]:
        """The entries of a directory by name, links not followed, and whether there are more than listed."""
        try:
            fd = self.workspace.open(self.names(path), os.O_RDONLY | os.O_DIRECTORY)
        except NotADirectoryError:
            raise Problem("invalid", f"{shown(path)} is no directory") from None
        except OSError as exc:
            refuse(exc, path)
        try:
            names = sorted(os.fsencode(name) for name in os.listdir(fd))
            names = [name for name in names if not name.startswith(HIDDEN)]
            entries = []
            for name in names[:LIST_MAX]:
                try:
                    found = os.stat(name, dir_fd=fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue  # removed meanwhile
                entries.append(Entry(name, found))
            return entries, len(names) > LIST_MAX
        except OSError as exc:
            refuse(exc, path)
        finally:
            os.close(fd)

    def open(self, path: bytes) -> OpenFile:
        """A regular file for reading; the descriptor is the caller's to close."""
        try:
            fd = self.workspace.open(self.names(path), os.O_RDONLY)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # a socket
                raise Problem("invalid", f"{shown(path)} is no regular file") from None
            refuse(exc, path)
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)
            kind = "a directory" if stat.S_ISDIR(found.st_mode) else "no regular file"
            raise Problem("invalid", f"{shown(path)} is {kind}")
        return OpenFile(fd, found)

    def stat(self, path: bytes, *, follow: bool) -> Entry:
        """What is at `path`; without `follow` a symbolic link itself."""
        names = self.names(path)
        if names and not follow:
            with self.directory_of(names) as directory:
                return entry_at(directory, names)
        try:
            fd = self.workspace.open(names, os.O_PATH)
        except OSError as exc:
            refuse(exc, path)
        try:
            return Entry(b"/".join(names), os.fstat(fd))
        finally:
            os.close(fd)

    # Changing

    def make_directory(self, path: bytes, mode: int, *, parents: bool, exist_ok: bool) -> tuple[Entry, bool]:
        """Make a directory with exactly `mode`, and whether it was not there before."""
        names = self.names(path)
        if not names:
            if not exist_ok:
                raise Problem("file_exists", "the path is the workspace itself")
            return self.stat(path, follow=True), False
        with self.directory_of(names, make=parents) as directory:
            try:
                os.mkdir(names[-1], 0o700, dir_fd=directory)
            except FileExistsError:
                entry = self._existing_directory(names)
                if not exist_ok or entry is None:
                    raise
                return entry, False
            made = os.open(names[-1], _DIRECTORY, dir_fd=directory)
            try:
                os.fchmod(made, mode)
                return Entry(b"/".join(names), os.fstat(made)), True
            finally:
                os.close(made)

    def _existing_directory(self, names: tuple[bytes, ...]) -> Entry | None:
        try:
            fd = self.workspace.open(names, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None
        try:
            return Entry(b"/".join(names), os.fstat(fd))
        finally:
            os.close(fd)

    def move(self, source: bytes, destination: bytes, *, overwrite: bool) -> Entry:
        """Rename, links themselves; the directories above `destination` are made as needed."""
        old, new = self.names_of_one(source), self.names_of_one(destination)
        if new[: len(old)] == old and len(new) > len(old):
            raise Problem("invalid", f"{shown(source)} cannot be moved into itself")
        with self.directory_of(old) as from_:
            os.stat(old[-1], dir_fd=from_, follow_symlinks=False)  # before anything is made for it
            with self.directory_of(new, make=True) as to:
                try:
                    if overwrite:
                        os.rename(old[-1], new[-1], src_dir_fd=from_, dst_dir_fd=to)
                    elif new != old:
                        linux.rename_exclusively(from_, old[-1], to, new[-1])
                except OSError as exc:
                    if exc.errno == errno.EXDEV:
                        raise Problem(
                            "invalid", f"{shown(destination)} is on another file system: copy, then delete"
                        ) from exc
                    refuse(exc, destination)
                return entry_at(to, new)

    def remove(self, path: bytes) -> bool:
        """Remove a file, a link or an empty directory; False: it is a directory that is not empty."""
        names = self.names_of_one(path)
        with self.directory_of(names) as directory:
            try:
                os.unlink(names[-1], dir_fd=directory)
            except IsADirectoryError:
                try:
                    os.rmdir(names[-1], dir_fd=directory)
                except OSError as exc:
                    if exc.errno != errno.ENOTEMPTY:
                        raise
                    return False
            return True

    def change(self, path: bytes, mode: int | None, modified_ns: int | None) -> Entry:
        """Set permissions, or the time of the last change, of what `path` leads to, links followed."""
        names = self.names(path)
        try:
            fd = self.workspace.open(names, os.O_PATH)
        except OSError as exc:
            refuse(exc, path)
        try:
            change_open(fd, mode, modified_ns)
            return Entry(b"/".join(names), os.fstat(fd))
        except OSError as exc:
            refuse(exc, path)
        finally:
            os.close(fd)


def change_open(fd: int, mode: int | None, modified_ns: int | None) -> None:
    """Permissions and time of what is open, with O_PATH at least; a link itself has neither. Raises OSError."""
    found = os.fstat(fd)
    if stat.S_ISLNK(found.st_mode):
        return
    # The file may be one that its owner cannot open, and O_PATH descriptors have no fchmod(2).
    path = linux.fd_path(fd)
    if mode is not None:
        os.chmod(path, mode)
    if modified_ns is not None:
        os.utime(path, ns=(found.st_atime_ns, modified_ns))
