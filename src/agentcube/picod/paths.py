"""Paths of the workspace, and descriptors of what they name. Nothing reached here lies outside of it.

A path is cleaned as text first; whatever symbolic links then say is resolved with the workspace as
the root directory: by openat2(RESOLVE_IN_ROOT), or by a walk that opens one name at a time with
O_NOFOLLOW and reads each link itself. Both hold against a program that moves things meanwhile,
because everything is done relative to open directories. All names are bytes.
"""

from __future__ import annotations

import errno
import os
import stat

from agentcube.picod import linux

PATH_BYTES_MAX = 4095  # PATH_MAX without its NUL
DEPTH_MAX = 256  # names in a path: making directories costs the square of it
_LINKS_MAX = 40  # as the kernel
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# What openat2 cannot do here, and the walk can: no such call, a filter's answer, too many races, or
# an absolute link that names the workspace by its own path.
_WALK_INSTEAD = frozenset((errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG, errno.EAGAIN, errno.ENOENT))


class PathRefused(Exception):
    """The text is no path in the workspace. The message is for the caller."""


class Workspace:
    """One directory and all below it."""

    def __init__(self, root: str, *, openat2: bool = True) -> None:
        self._openat2 = openat2
        self._prefix = _names(os.fsencode(root))
        self._root = os.open(root, _DIRECTORY)

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._root)

    def clean(self, path: bytes) -> tuple[bytes, ...]:
        """The names from the workspace down to what `path` means; () is the workspace itself.

        An absolute path starts at the workspace, whether or not it spells out where that is.

        Raises:
            PathRefused: it leads out, is too long, or holds a NUL.
        """
        names = _names(path)
        if len(path) > PATH_BYTES_MAX or len(names) > DEPTH_MAX:
            raise PathRefused(f"the path has more than {PATH_BYTES_MAX} bytes or {DEPTH_MAX} names")
        if b"\x00" in path:
            raise PathRefused("the path holds a NUL")
        if path.startswith(b"/") and names[: len(self._prefix)] == self._prefix:
            names = names[len(self._prefix) :]
        clean: list[bytes] = []
        for name in names:
            if name != b"..":
                clean.append(name)
            elif clean:
                clean.pop()
            else:
                raise PathRefused("the path leads out of the workspace")
        return tuple(clean)

    def open(self, names: tuple[bytes, ...], flags: int) -> int:
        """A descriptor of what `names` lead to, links followed. Never blocks on a FIFO. Raises OSError."""
        flags |= os.O_CLOEXEC if flags & os.O_PATH else os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        if self._openat2:
            try:
                resolve = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
                return linux.openat2(self._root, b"/".join(names) or b".", flags, resolve)
            except OSError as exc:
                if exc.errno not in _WALK_INSTEAD:
                    raise
        return self._walk(names, flags)

    def make_directories(self, names: tuple[bytes, ...]) -> int:
        """A descriptor (O_PATH) of that directory, made with its parents as needed. Raises OSError."""
        there = len(names)
        while True:
            try:
                directory = self.open(names[:there], _DIRECTORY)
                break
            except FileNotFoundError:
                if there == 0:
                    raise
                there -= 1
        for number in range(there + 1, len(names) + 1):
            try:
                os.mkdir(names[number - 1], 0o755, dir_fd=directory)
            except FileExistsError:
                pass  # made by another meanwhile, or a link that leads nowhere: opening it tells
            finally:
                os.close(directory)
            directory = self.open(names[:number], _DIRECTORY)
        return directory

    def _walk(self, names: tuple[bytes, ...], flags: int) -> int:
        """As openat2 with RESOLVE_IN_ROOT, one name at a time."""
        held = [os.dup(self._root)]  # the directories from the root down to where we are
        todo = list(reversed(names))
        links = 0
        try:
            while todo:
                name = todo.pop()
                if name == b"..":
                    if len(held) > 1:
                        os.close(held.pop())
                    continue
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=held[-1])
                mode = os.fstat(fd).st_mode
                if stat.S_ISLNK(mode):
                    links += 1
                    target = _take_link(fd)
                    if links > _LINKS_MAX:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                    if target.startswith(b"/"):
                        _close_all(held[1:])
                        del held[1:]
                    todo.extend(reversed(self._below(target)))
                elif stat.S_ISDIR(mode):
                    held.append(fd)
                else:
                    os.close(fd)
                    if todo:
                        raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
                    return os.open(name, flags | os.O_NOFOLLOW, dir_fd=held[-1])
            # A directory that may not be entered has no "." for us, and is open here already.
            return os.dup(held[-1]) if flags & os.O_PATH else os.open(b".", flags, dir_fd=held[-1])
        finally:
            _close_all(held)

    def _below(self, target: bytes) -> tuple[bytes, ...]:
        """The names of a link's target; an absolute one may spell out where the workspace is."""
        names = _names(target)
        if target.startswith(b"/") and self._prefix and names[: len(self._prefix)] == self._prefix:
            return names[len(self._prefix) :]
        return names


def _names(path: bytes) -> tuple[bytes, ...]:
    return tuple(name for name in path.split(b"/") if name not in (b"", b"."))


def _take_link(fd: int) -> bytes:
    try:
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
