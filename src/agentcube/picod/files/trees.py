"""Whole trees: removed, copied, changed. Long work, a step at a time (`workers`)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator
from itertools import islice

from agentcube.picod import linux
from agentcube.picod.files.entries import Entry, entry_at, refuse, shown
from agentcube.picod.files.files import Files, change_open
from agentcube.picod.files.uploads import Part, hidden_name, link
from agentcube.picod.files.walk import OPEN_DIRECTORY, SWAPPED, Step, walk
from agentcube.picod.problems import Problem

Steps = Generator[None, None, None]

_BATCH = 1000  # names that are read at once of a directory that is emptied
_OPEN_MAX = 64  # directories open at once; what lies deeper is brought up first
_ROUNDS_MAX = 1000  # of one directory that others go on filling
_COPY_BYTES = 8 << 20  # in one step
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CANNOT_COPY_RANGES = frozenset((errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF))


# Removing


class _Emptying:
    """A directory that is being emptied: `name` in its parent, open as `fd`."""

    def __init__(self, fd: int, name: bytes) -> None:
        self.fd = fd
        self.name = name
        self.batch: list[bytes] = []
        self._rounds = 0

    def more(self) -> bool:
        """Read names again; False when there are none, which makes it ready to be removed."""
        self._rounds += 1
        if self._rounds > _ROUNDS_MAX:
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        with os.scandir(self.fd) as listing:
            self.batch = [os.fsencode(entry.name) for entry in islice(listing, _BATCH)]
        return bool(self.batch)


def remove_tree(files: Files, path: bytes) -> Steps:
    """Remove a directory and all that is in it; links, never what they lead to. Stopped, the rest stays."""
    names = files.names_of_one(path)
    with files.directory_of(names) as parent:
        yield from _remove_directory(parent, names[-1], names)


def _remove_directory(parent: int, name: bytes, names: tuple[bytes, ...]) -> Steps:
    """Remove the directory `name` in `parent`; `names` are those for callers. Raises OSError.

    Bounded however deep it is: from `_OPEN_MAX` directories down, the next one is moved up to the
    top before it is emptied.
    """
    stack = [_Emptying(os.open(name, OPEN_DIRECTORY, dir_fd=parent), name)]
    try:
        while stack:
            level = stack[-1]
            if level.batch:
                _remove_one(stack, level, level.batch.pop())
            elif not level.more():
                _remove_emptied(stack, parent)
            yield
    except OSError as exc:
        refuse(exc, b"/".join((*names, *(level.name for level in stack[1:]))))
    finally:
        for level in stack:
            os.close(level.fd)


def _remove_one(stack: list[_Emptying], level: _Emptying, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=level.fd)
        return
    except FileNotFoundError:
        return
    except IsADirectoryError:
        pass
    try:
        if len(stack) < _OPEN_MAX:
            stack.append(_Emptying(os.open(name, OPEN_DIRECTORY, dir_fd=level.fd), name))
        else:
            raised = hidden_name()
            os.rename(name, raised, src_dir_fd=level.fd, dst_dir_fd=stack[0].fd)
            stack[0].batch.append(raised)
    except OSError as exc:
        if exc.errno not in SWAPPED:
            raise
        level.batch.append(name)  # something else by now


def _remove_emptied(stack: list[_Emptying], parent: int) -> None:
    level = stack[-1]
    try:
        os.rmdir(level.name, dir_fd=stack[-2].fd if len(stack) > 1 else parent)
    except OSError as exc:
        if exc.errno == errno.ENOTEMPTY:
            return  # filled again meanwhile, or swapped
        if exc.errno not in SWAPPED:
            raise
    os.close(stack.pop().fd)


# Changing


def change_tree(
    files: Files, path: bytes, mode: int | None, modified_ns: int | None
) -> Generator[None, None, Entry]:
    """`Files.change` for a directory and all that is in it; links are left alone."""
    names = files.names(path)
    try:
        above = files.workspace.open(names, os.O_PATH)
    except OSError as exc:
        refuse(exc, path)
    try:
        if stat.S_ISDIR(os.fstat(above).st_mode):
            _open_up(above)
            top = os.open(b".", OPEN_DIRECTORY, dir_fd=above)
            try:
                yield from _change_below(top, names, mode, modified_ns)
            finally:
                os.close(top)
        change_open(above, mode, modified_ns)
        return Entry(b"/".join(names), os.fstat(above))
    except OSError as exc:
        refuse(exc, path)
    finally:
        os.close(above)


def _change_below(top: int, names: tuple[bytes, ...], mode: int | None, modified_ns: int | None) -> Steps:
    def before(directory: int, name: bytes, found: os.stat_result) -> None:
        """What its owner cannot read or enter has to be opened up first; it gets its mode on leaving."""
        if mode is not None and found.st_mode & 0o700 != 0o700:
            fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                _open_up(fd)
            finally:
                os.close(fd)

    for step in walk(top, names, before=before):
        if step.fd < 0 or step.leaving:
            _change_step(step, names, mode, modified_ns)
        yield


def _open_up(fd: int) -> None:
    found = os.fstat(fd)
    if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o700 != 0o700:
        os.chmod(linux.fd_path(fd), stat.S_IMODE(found.st_mode) | 0o700)


def _change_step(step: Step, base: tuple[bytes, ...], mode: int | None, modified_ns: int | None) -> None:
    try:
        fd = step.fd
        if fd < 0:
            fd = os.open(step.names[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=step.directory)
        try:
            change_open(fd, mode, modified_ns)
        finally:
            if step.fd < 0:
                os.close(fd)
    except FileNotFoundError:
        pass  # removed meanwhile
    except OSError as exc:
        refuse(exc, b"/".join((*base, *step.names)))


# Copying


def copy(
    files: Files, source: bytes, destination: bytes, *, recursive: bool, overwrite: bool
) -> Generator[None, None, Entry]:
    """Copy a file, a link as a link, or a directory with all that is in it; modes and times are kept.

    What is new appears whole or not at all. A directory that is there already is merged into, file by
    file. Sockets, FIFOs and devices in a directory are left out. The directories above `destination`
    are made as needed.
    """
    old, new = files.names_of_one(source), files.names_of_one(destination)
    if new[: len(old)] == old:
        raise Problem("invalid", f"{shown(source)} cannot be copied into itself")
    with files.directory_of(old) as from_:
        found = os.stat(old[-1], dir_fd=from_, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) and not recursive:
            raise Problem("invalid", f"{shown(source)} is a directory: ask for recursive")
        if not stat.S_ISDIR(found.st_mode) and not _is_copied(found):
            raise Problem("invalid", f"{shown(source)} is neither a file nor a directory nor a link")
        with files.directory_of(new, make=True) as to:
            there = _exists(to, new[-1])
            if there and not overwrite:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            if not stat.S_ISDIR(found.st_mode):
                yield from _copy_one(from_, old[-1], found, to, new, exclusive=not overwrite)
                return entry_at(to, new)
            fd = os.open(old[-1], OPEN_DIRECTORY, dir_fd=from_)
            try:
                yield from (_merge(fd, old, to, new[-1], new) if there else _copy_new(fd, old, to, new))
            finally:
                os.close(fd)
            return entry_at(to, new)


def _is_copied(found: os.stat_result) -> bool:
    return stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode)


def _exists(directory: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _copy_new(source: int, old: tuple[bytes, ...], to: int, new: tuple[bytes, ...]) -> Steps:
    """Copy a directory under a hidden name, then rename it; what does not get there is removed."""
    hidden = hidden_name()
    os.mkdir(hidden, 0o700, dir_fd=to)
    try:
        yield from _merge(source, old, to, hidden, new)
        linux.rename_exclusively(to, hidden, to, new[-1])
    except BaseException:
        yield from _remove_directory(to, hidden, new)
        raise


def _merge(source: int, old: tuple[bytes, ...], to: int, name: bytes, new: tuple[bytes, ...]) -> Steps:
    """Copy what is in the directory `source` to the directory `name` in `to`; `new` are its names for callers."""
    open_ = [os.open(name, OPEN_DIRECTORY, dir_fd=to)]
    top = os.fstat(open_[0])
    names = new
    try:
        for step in walk(source, old):
            names = (*new, *step.names)
            if step.leaving:
                _finish_directory(open_[-1], step.found)
                os.close(open_.pop())
            elif step.fd >= 0:
                if (step.found.st_dev, step.found.st_ino) == (top.st_dev, top.st_ino):
                    raise Problem("invalid", f"{shown(b'/'.join(old))} cannot be copied into itself")
                open_.append(_make_directory(open_[-1], step.names[-1]))
            elif _is_copied(step.found):
                try:
                    yield from _copy_one(
                        step.directory, step.names[-1], step.found, open_[-1], names, exclusive=False
                    )
                except FileNotFoundError:
                    pass  # removed meanwhile
            yield
        _finish_directory(open_[0], os.fstat(source))
    except OSError as exc:
        refuse(exc, b"/".join(names))
    finally:
        for fd in open_:
            os.close(fd)


def _make_directory(directory: int, name: bytes) -> int:
    try:
        os.mkdir(name, 0o700, dir_fd=directory)
    except FileExistsError:
        pass
    return os.open(name, OPEN_DIRECTORY, dir_fd=directory)


def _finish_directory(fd: int, found: os.stat_result) -> None:
    os.fchmod(fd, stat.S_IMODE(found.st_mode))
    os.utime(fd, ns=(found.st_atime_ns, found.st_mtime_ns))


def _copy_one(
    from_: int, name: bytes, found: os.stat_result, to: int, names: tuple[bytes, ...], *, exclusive: bool
) -> Steps:
    """Copy a file or a link to the last of `names`, in `to`. Raises OSError."""
    if stat.S_ISLNK(found.st_mode):
        link(os.readlink(name, dir_fd=from_), to, names[-1], found.st_mtime_ns, exclusive=exclusive)
        return
    source = os.open(name, _READ, dir_fd=from_)
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))  # swapped meanwhile
        part = Part(os.dup(to))
        try:
            yield from _copy_data(source, part.fd, found.st_size)
            mode = stat.S_IMODE(found.st_mode)
            part.finish(names, mode, modified_ns=found.st_mtime_ns, exclusive=exclusive)
        finally:
            part.discard()
    finally:
        os.close(source)


def _copy_data(source: int, target: int, size: int) -> Steps:
    """Copy what is data; holes stay holes."""
    in_kernel, position = True, 0
    while position < size:
        try:
            position = os.lseek(source, position, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno != errno.ENXIO:
                raise
            break  # nothing but a hole
        end = min(size, os.lseek(source, position, os.SEEK_HOLE))
        while position < end:
            try:
                done = _copy_some(
                    source, target, min(_COPY_BYTES, end - position), position, in_kernel=in_kernel
                )
            except OSError as exc:
                if not in_kernel or exc.errno not in _CANNOT_COPY_RANGES:
                    raise
                in_kernel = False
                continue
            if done == 0:
                return  # it shrank meanwhile
            position += done
            yield
    os.ftruncate(target, size)


def _copy_some(source: int, target: int, count: int, position: int, *, in_kernel: bool) -> int:
    if in_kernel:
        return os.copy_file_range(source, target, count, position, position)
    return os.pwrite(target, os.pread(source, min(count, _COPY_BYTES >> 3), position), position)
