"""Going through a tree of directories that others may change meanwhile. Links are not followed.

Bounded: for each directory on the way down two descriptors and `_NAMES_AT_ONCE` names at most, and
`DEPTH_MAX` of these.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Callable

from agentcube.picod.files.entries import HIDDEN, refuse, shown
from agentcube.picod.paths import DEPTH_MAX
from agentcube.picod.problems import Problem

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SWAPPED = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
"""What opening a directory says when it is gone, or something else by now."""

_NAMES_AT_ONCE = 250


@dataclass(frozen=True)
class Step:
    """Something in the tree: the last of `names` (from the start down), which is in `directory`.

    A directory comes twice: open as `fd`, before anything of it was read; and `leaving`, after all
    that is in it. Other things come once, with `fd` -1.
    """

    directory: int
    names: tuple[bytes, ...]
    found: os.stat_result
    fd: int = -1
    leaving: bool = False


class Names:
    """The names in a directory, unordered, hidden ones left out. A large one is read as it is gone through."""

    def __init__(self, fd: int) -> None:
        self._listing = os.scandir(fd)
        all_names = (os.fsencode(entry.name) for entry in self._listing)
        try:
            first = list(islice(all_names, _NAMES_AT_ONCE))
        except OSError:
            self.close()
            raise
        if len(first) < _NAMES_AT_ONCE:
            self.close()
        self._names = (name for name in chain(first, all_names) if not name.startswith(HIDDEN))

    def __iter__(self) -> Iterator[bytes]:
        return self._names

    def close(self) -> None:
        """Close. Idempotent."""
        self._listing.close()


class _Level:
    def __init__(self, fd: int, names: tuple[bytes, ...], found: os.stat_result) -> None:
        self.fd = fd
        self.names = names
        self.found = found
        self._below: Names | None = None

    def next(self) -> bytes | None:
        """The next name in it; read from the first call on."""
        if self._below is None:
            self._below = Names(self.fd)
        return next(iter(self._below), None)

    def close(self) -> None:
        os.close(self.fd)
        if self._below is not None:
            self._below.close()


def walk(
    start: int,
    base: tuple[bytes, ...],
    *,
    before: Callable[[int, bytes, os.stat_result], None] = lambda directory, name, found: None,
    tolerant: bool = False,
) -> Generator[Step, None, None]:
    """Everything below the open directory `start`, which stays the caller's; `base` are its names.

    `before` is called before a directory is opened. What vanishes meanwhile is left out; `tolerant`
    leaves out directories that cannot be opened, or are too deep, as well.

    Raises:
        Problem: names what could not be read, or lies too deep.
    """
    stack = [_Level(os.dup(start), (), os.fstat(start))]
    names: tuple[bytes, ...] = ()
    try:
        while stack:
            level = stack[-1]
            names = level.names
            name = level.next()
            if name is None:
                if len(stack) > 1:
                    yield Step(stack[-2].fd, level.names, level.found, level.fd, leaving=True)
                stack.pop().close()
                continue
            names = (*level.names, name)
            try:
                found = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
                if not stat.S_ISDIR(found.st_mode):
                    yield Step(level.fd, names, found)
                    continue
                if len(base) + len(names) > DEPTH_MAX:
                    if tolerant:
                        continue
                    path = shown(b"/".join((*base, *names)))
                    raise Problem("invalid", f"{path} is below more than {DEPTH_MAX} directories")
                before(level.fd, name, found)
                fd = os.open(name, OPEN_DIRECTORY, dir_fd=level.fd)
            except OSError as exc:
                if exc.errno in SWAPPED or (tolerant and exc.errno == errno.EACCES):
                    continue
                raise
            stack.append(_Level(fd, names, os.fstat(fd)))
            yield Step(level.fd, names, stack[-1].found, fd)
    except OSError as exc:
        refuse(exc, b"/".join((*base, *names)))
    finally:
        for level in stack:
            level.close()
