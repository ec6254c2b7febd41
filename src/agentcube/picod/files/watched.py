"""The directories that are watched, as the events tell: a tree that follows the real one, a little behind."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from agentcube.picod import linux
from agentcube.picod.files.entries import refuse, shown
from agentcube.picod.files.files import Files
from agentcube.picod.files.walk import OPEN_DIRECTORY
from agentcube.picod.problems import Problem

WATCHES_MAX = 8192
"""Directories of one watch; all watches of a sandbox and its programs have 16,384 (`drivers.local.inside.confine`)."""

IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO = 0x2, 0x8, 0x40, 0x80
IN_CREATE, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x100, 0x200, 0x400, 0x800
IN_UNMOUNT, IN_Q_OVERFLOW, IN_IGNORED, IN_ISDIR = 0x2000, 0x4000, 0x8000, 0x4000_0000
_IN_ONLYDIR, _IN_EXCL_UNLINK = 0x0100_0000, 0x0400_0000
_MASK = (
    IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE
    | IN_DELETE_SELF | IN_MOVE_SELF | _IN_ONLYDIR | _IN_EXCL_UNLINK
)  # fmt: skip


NOWHERE = (0, 0)
"""The identity of a directory that is no more: its number may be another's."""


class Node:
    """A watched directory.

    `seen` are names in it that a scan told of, whose own events may be to come; `arrived` is the name that its
    latest event was about, if something was renamed to that.
    """

    __slots__ = ("arrived", "children", "identity", "name", "parent", "seen", "watch")

    def __init__(self, watch: int, identity: tuple[int, int], parent: Node | None, name: bytes) -> None:
        self.watch = watch
        self.identity = identity
        self.parent = parent
        self.name = name
        self.children: dict[bytes, Node] = {}
        self.seen: set[bytes] = set()
        self.arrived = b""

    def is_same(self, found: os.stat_result) -> bool:
        """Whether `found` is this directory."""
        return stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) == self.identity


Place = tuple[Node, bytes]
"""A name in a watched directory."""


class Leaving(NamedTuple):
    """The first half of a rename."""

    node: Node
    name: bytes
    is_dir: bool
    since: float


class Doubt(NamedTuple):
    """Of a place that may not be as we have it.

    `told`: that there is a directory, though we do not watch it. `differs`: it was looked at, and was not as
    we have it; when all events until then are read and none explains that, none will.
    """

    told: bool = False
    differs: bool = False


class Tree:
    """All nodes of a watch, and its inotify descriptor. `close` it."""

    def __init__(self, files: Files, path: bytes) -> None:
        self._files = files
        self.names = files.names(path)
        try:
            self.fd = linux.inotify_init()
        except OSError as exc:
            raise _too_many("watches") from exc
        try:
            top = self.open_top()
            try:
                self.nodes: dict[int, Node] = {}
                self.root = self._add(top, None, b"")
            finally:
                os.close(top)
        except OSError as exc:
            os.close(self.fd)
            if exc.errno == errno.ENOTDIR:
                raise Problem("invalid", f"{shown(path)} is no directory: watch the one it is in") from None
            refuse(exc, path)
        except Problem:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """End all watches."""
        os.close(self.fd)

    def open_top(self) -> int:
        """The directory at the watch's path, whichever that is now. Raises OSError."""
        return self._files.workspace.open(self.names, os.O_RDONLY | os.O_DIRECTORY)

    def is_in_place(self) -> bool:
        """Whether the watched directory is still where the watch's path leads."""
        try:
            os.close(self.open(self.root))
        except OSError:
            return False
        return True

    def open(self, node: Node) -> int:
        """The directory of `node`. Raises OSError: ESTALE when it is somewhere else by now."""
        fd = self.open_top()
        try:
            for name in self._below_root(node):
                below = os.open(name, OPEN_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
            if not node.is_same(os.fstat(fd)):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        except OSError:
            os.close(fd)
            raise
        return fd

    def fits(self, node: Node, name: bytes) -> bool:
        """Whether what is `name` in `node` now is the directory that we have there, or is nothing if we have none."""
        child = node.children.get(name)
        try:
            above = self.open(node)
        except OSError:
            return False
        try:
            found = os.stat(name, dir_fd=above, follow_symlinks=False)
        except OSError:
            return child is None
        finally:
            os.close(above)
        return child is not None and self.is_live(child) and child.is_same(found)

    def path(self, node: Node, *below: bytes) -> tuple[bytes, ...]:
        """The names of `node`, as the events so far tell, and those below it."""
        return (*self.names, *self._below_root(node), *below)

    def add(self, fd: int, parent: Node, name: bytes) -> tuple[Node, bool]:
        """Watch the open directory `fd`, `name` in `parent`; False when it is watched, maybe as another name.

        Raises:
            Problem: `limit_exceeded`.
        """
        known = len(self.nodes)
        node = self._add(fd, parent, name)
        return node, len(self.nodes) > known

    def _add(self, fd: int, parent: Node | None, name: bytes) -> Node:
        if len(self.nodes) >= WATCHES_MAX:
            raise Problem(
                "limit_exceeded",
                f"a watch may have {WATCHES_MAX} directories: watch fewer, or not recursively",
            )
        try:
            watch = linux.inotify_add_watch(self.fd, fd, _MASK)
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.ENOMEM):
                raise _too_many("directories to watch") from exc
            refuse(exc, b"/".join((*self.path(parent), name)) if parent else b"")
        node = self.nodes.get(watch)
        if node is None:
            found = os.fstat(fd)
            node = self.nodes[watch] = Node(watch, (found.st_dev, found.st_ino), parent, name)
            if parent is not None:
                self._attach(node, parent, name)
        return node

    def move(self, node: Node, parent: Node, name: bytes) -> None:
        """`node` is `name` in `parent` now."""
        if node is self.root or any(above is node for above in upwards(parent)):
            return  # nothing that can be; what happens next puts it right
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        self._attach(node, parent, name)

    def _attach(self, node: Node, parent: Node, name: bytes) -> None:
        replaced = parent.children.get(name)
        if replaced is not None and replaced is not node:
            self.forget(replaced)
        node.parent, node.name = parent, name
        parent.children[name] = node

    def forget(self, node: Node) -> None:
        """Watch `node` and all below it no longer."""
        if node.parent is not None and node.parent.children.get(node.name) is node:
            del node.parent.children[node.name]
        gone = [node]
        while gone:
            one = gone.pop()
            gone.extend(one.children.values())
            self.nodes.pop(one.watch, None)
            linux.inotify_rm_watch(self.fd, one.watch)

    def is_live(self, node: Node) -> bool:
        """Whether `node` is watched still."""
        return self.nodes.get(node.watch) is node

    def _below_root(self, node: Node) -> list[bytes]:
        names = [one.name for one in upwards(node)]
        names.pop()  # the root's
        names.reverse()
        return names


def upwards(node: Node) -> Iterator[Node]:
    """`node` and all above it."""
    above: Node | None = node
    while above is not None:
        yield above
        above = above.parent


def _too_many(what: str) -> Problem:
    return Problem(
        "limit_exceeded",
        f"no more {what}: end some, or raise fs.inotify.max_user_instances and max_user_watches of the machine",
    )
