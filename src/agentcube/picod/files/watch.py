"""What happens to files below a directory, from inotify(7): made, written, removed, renamed.

A new directory is watched first and read then, so nothing in it is missed; what a scan told of is not
told again when its own event comes. A directory that moves takes its watch along.

Directories are looked at as they are now, events tell of what was before: replayed on what was found, they may
move the wrong one. So wherever a rename, or something found where it was not expected, leaves a doubt, that
place is looked at again when no event is left, and what differs is told.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Union

from agentcube.picod.files.entries import HIDDEN, REPLACES, text
from agentcube.picod.files.files import Files
from agentcube.picod.files.walk import OPEN_DIRECTORY, SWAPPED, walk
from agentcube.picod.files.watched import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    NOWHERE,
    WATCHES_MAX,
    Doubt,
    Leaving,
    Node,
    Place,
    Tree,
    upwards,
)
from agentcube.picod.paths import DEPTH_MAX, PATH_BYTES_MAX
from agentcube.picod.problems import Problem

COALESCE_S = 0.05  # writes to one file are told once in it; halves of a rename find each other
LOOK_S = (
    2.0  # how often a silent watch looks for its directory, which says nothing if removed with somebody in it
)
_READ_BYTES = 64 * 1024
_EVENTS_AT_ONCE = 256
_DOUBTS_MAX = 2 * WATCHES_MAX  # each of the directories may have moved
_HEAD = struct.Struct("=iIII")  # watch, mask, cookie, length of the name

_NAMES = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO

Event = tuple[str, dict[str, Any]]


@dataclass
class Batch:
    """Events to send. After that, unless `wait` is None: wait for the descriptor, that long at most."""

    events: list[Event] = field(default_factory=list)
    wait: float | None = None


Steps = Generator[Union[Batch, None], None, None]


class Watch:
    """One watch. Made in a worker thread; then `run` is its work, which ends with it and closes it."""

    def __init__(self, files: Files, path: bytes, *, recursive: bool) -> None:
        self._tree = Tree(files, path)
        self._recursive = recursive
        self._events: list[Event] = []
        self._written: dict[Place, float] = {}  # since when, oldest first
        self._leaving: dict[int, Leaving] = {}  # by cookie
        self._doubts: dict[Place, Doubt] = {}
        self._scanned: list[Node] = []
        self._over = False

    @property
    def fd(self) -> int:
        """Readable when there is something to tell."""
        return self._tree.fd

    def close(self) -> None:
        """For a watch that never ran."""
        self._tree.close()

    def run(self) -> Steps:
        """Watch, until the directory is gone: `ready` in the first batch, `end` in the last.

        Raises:
            Problem: `limit_exceeded` before the first batch, when there are too many directories.
        """
        try:
            if self._recursive:
                yield from self._scan_all()
            told = self._take()
            self._say("ready", ())
            self._events.extend(told)
            while not self._over:
                yield Batch(self._take(), self._due())
                yield from self._drain()
            yield Batch(self._take())
        finally:
            self.close()

    # Reading

    def _drain(self) -> Steps:
        """Read and interpret all that the kernel holds for us."""
        nothing = True
        while not self._over:
            try:
                data = os.read(self._tree.fd, _READ_BYTES)
            except BlockingIOError:
                break
            nothing = False
            at = 0
            while at < len(data) and not self._over:
                watch, mask, cookie, length = _HEAD.unpack_from(data, at)
                at += _HEAD.size + length
                if mask & IN_Q_OVERFLOW or len(self._doubts) > _DOUBTS_MAX:
                    yield from self._start_anew()
                node = self._tree.nodes.get(watch)
                if node is not None:  # else we watch it no longer
                    yield from self._on_event(node, mask, cookie, data[at - length : at].rstrip(b"\x00"))
                yield from self._many()
            yield from self._flush(time.monotonic())
            yield None
        for node in self._scanned:
            node.seen.clear()  # what was in the queue when it was scanned has been read
        self._scanned.clear()
        yield from self._flush(time.monotonic())
        if not self._leaving and not self._over:
            yield from self._settle()
        if nothing and not self._leaving and not self._written and not self._tree.is_in_place():
            self._end("gone")

    def _due(self) -> float:
        begins = [leaving.since for leaving in self._leaving.values()]
        begins.extend(list(self._written.values())[:1])
        if not begins:
            return COALESCE_S if self._doubts else LOOK_S
        return max(0.0, min(begins) + COALESCE_S - time.monotonic())

    def _many(self) -> Steps:
        """Send what is to be told, if it is much: a path can have some kilobytes."""
        if len(self._events) >= _EVENTS_AT_ONCE:
            yield Batch(self._take())

    def _flush(self, now: float) -> Steps:
        """Tell what has waited long enough."""
        for cookie, leaving in list(self._leaving.items()):
            if leaving.since + COALESCE_S <= now:
                self._leave([cookie])
                yield from self._many()
        for key, since in list(self._written.items()):
            if since + COALESCE_S > now:
                break
            self._tell_written(key)
            yield from self._many()

    # What events mean

    def _on_event(self, node: Node, mask: int, cookie: int, name: bytes) -> Steps:
        if not name:
            self._on_directory(node, mask)
            return
        is_dir = bool(mask & IN_ISDIR)
        from_ = self._leaving.pop(cookie, None) if mask & IN_MOVED_TO else None
        if mask & _NAMES:
            self._doubts.pop((node, name), None)
            # A directory stands still while a name in it is renamed: the other half would have come before this.
            self._leave([other for other, leaving in self._leaving.items() if leaving.node is node])
            if mask & IN_MOVED_FROM and node.arrived == name:
                self._doubts[(node, name)] = Doubt()  # maybe exchanged for what arrived (RENAME_EXCHANGE)
            node.arrived = name if mask & IN_MOVED_TO and not name.startswith(HIDDEN) else b""
        if mask & IN_MOVED_FROM:
            self._leaving[cookie] = Leaving(node, name, is_dir, time.monotonic())
        elif mask & IN_MOVED_TO:
            yield from self._arrived(node, name, from_, is_dir=is_dir)
        elif name.startswith(HIDDEN):
            return
        elif mask & IN_CREATE:
            yield from self._made(node, name, is_dir=is_dir)
        elif mask & IN_DELETE:
            self._gone(node, name, is_dir=is_dir)
        elif mask & (IN_MODIFY | IN_CLOSE_WRITE):
            self._written.setdefault((node, name), time.monotonic())

    def _on_directory(self, node: Node, mask: int) -> None:
        if node is self._tree.root:
            if mask & (IN_DELETE_SELF | IN_UNMOUNT | IN_IGNORED):
                self._say("delete", (), is_dir=True)
                self._end("gone")
            elif mask & IN_MOVE_SELF:
                self._end("gone")
        elif mask & IN_IGNORED and node.parent is not None:
            node.identity = NOWHERE  # which its parent tells next, if we have it where it was
            self._doubts[(node.parent, node.name)] = Doubt()
        elif mask & IN_MOVE_SELF:  # comes after both halves
            self._leave(
                [cookie for cookie, one in self._leaving.items() if one.node.children.get(one.name) is node]
            )

    def _made(self, node: Node, name: bytes, *, is_dir: bool) -> Steps:
        if name in node.seen:
            node.seen.discard(name)
        else:
            self._tell("create", node, name, is_dir=is_dir)
        if name in node.children:
            self._doubts[(node, name)] = Doubt()
        elif is_dir and self._recursive:
            yield from self._look(node, name, told=True)

    def _gone(self, node: Node, name: bytes, *, is_dir: bool) -> None:
        node.seen.discard(name)
        self._written.pop((node, name), None)
        self._tell("delete", node, name, is_dir=is_dir)
        if name in node.children:
            self._tree.forget(node.children[name])

    def _arrived(self, node: Node, name: bytes, from_: Leaving | None, *, is_dir: bool) -> Steps:
        """The second half of a rename; without the first it came from outside."""
        if from_ is not None and not self._tree.is_live(from_.node):
            from_ = None  # told with the directory it was in
        if from_ is not None and from_.name.startswith(HIDDEN):
            if from_.name.endswith(REPLACES) and not name.startswith(HIDDEN):
                self._written.setdefault((node, name), time.monotonic())
                return
            from_ = None
        if from_ is not None and (name.startswith(HIDDEN) or not self._may_move(from_, node)):
            self._gone(from_.node, from_.name, is_dir=is_dir)
            from_ = None
        if name.startswith(HIDDEN) or not self._tree.is_live(node):
            return
        if from_ is None:
            yield from self._made(node, name, is_dir=is_dir)
            if not is_dir:
                self._written.setdefault((node, name), time.monotonic())
        else:
            yield from self._renamed(from_, node, name)

    def _may_move(self, from_: Leaving, node: Node) -> bool:
        """Whether what we have there is what was renamed, as far as one can tell."""
        child = from_.node.children.get(from_.name)
        return child is None or (from_.is_dir and child not in upwards(node))

    def _renamed(self, from_: Leaving, node: Node, name: bytes) -> Steps:
        old, new = (from_.node, from_.name), (node, name)
        if old in self._written:
            self._tell_written(old)
        self._written.pop(new, None)  # what was there is replaced
        from_.node.seen.discard(from_.name)
        node.seen.discard(name)
        self._tell("rename", *new, is_dir=from_.is_dir, from_=text(b"/".join(self._tree.path(*old))))
        child = from_.node.children.get(from_.name)
        replaced = node.children.get(name)
        if replaced is not None and replaced is not child:
            self._tree.forget(replaced)
        if child is not None and self._tree.is_live(
            child
        ):  # it may have been below what it replaces, as we had that
            if self._is_too_far(*new):
                self._tree.forget(child)
            else:
                self._tree.move(child, *new)
                self._doubts[new] = Doubt()
        elif from_.is_dir and self._recursive:
            yield from self._look(*new, told=True)

    def _leave(self, cookies: list[int]) -> None:
        """These were renamed to somewhere outside."""
        for cookie in cookies:
            leaving = self._leaving.pop(cookie)
            if self._tree.is_live(leaving.node) and not leaving.name.startswith(HIDDEN):
                self._gone(leaving.node, leaving.name, is_dir=leaving.is_dir)

    # Looking at what there is

    def _settle(self) -> Steps:
        """Look where events and what was found may not fit, and tell what does not fit twice."""
        doubts, self._doubts = self._doubts, {}
        for (node, name), doubt in doubts.items():
            yield None
            if not self._tree.is_live(node) or self._tree.fits(node, name):
                continue
            if not doubt.differs:
                self._doubts.setdefault((node, name), Doubt(doubt.told, differs=True))
                continue
            if name in node.children:
                self._drop(node.children[name])
            yield from self._look(node, name, told=doubt.told, settled=True)

    def _look(self, node: Node, name: bytes, *, told: bool, settled: bool = False) -> Steps:
        """Watch the directory that is `name` in `node`, if there is one, and tell what is in it.

        `told`: that it is there. `settled`: no event is to come that tells what else is there.
        """
        fd = self._open(node, name, told=told, settled=settled) if self._tree.is_live(node) else -1
        if fd < 0:
            return
        try:
            if self._recursive:
                yield from self._scan(fd, node, name, told=told, settled=settled)
            else:
                self._tell("create", node, name, is_dir=True)
        except Problem:
            self._tell("overflow", node, name, is_dir=True)  # too many, or too deep: we are blind there
        finally:
            os.close(fd)

    def _open(self, node: Node, name: bytes, *, told: bool, settled: bool) -> int:
        """The directory that is `name` in `node`; -1 if there is none, or it cannot be reached."""
        try:
            above = self._tree.open(node)
        except OSError as exc:
            if exc.errno in SWAPPED or exc.errno == errno.ESTALE:
                # One above it moved meanwhile, which an event to come will tell.
                self._doubts[(node, name)] = Doubt(told)
            else:
                self._tell("overflow", node, name, is_dir=True)
            return -1
        try:
            return os.open(name, OPEN_DIRECTORY, dir_fd=above)
        except OSError as exc:
            if exc.errno not in SWAPPED:
                self._tell("overflow", node, name, is_dir=True)
            elif settled and exc.errno != errno.ENOENT:
                self._tell("create", node, name, is_dir=False)
            return -1
        finally:
            os.close(above)

    def _drop(self, node: Node) -> None:
        """It is not where we have it: tell that, and watch it no longer."""
        if node.parent is not None:
            self._doubts[(node.parent, node.name)] = Doubt()
            self._gone(node.parent, node.name, is_dir=True)

    def _watch(
        self, fd: int, parent: Node, name: bytes, *, told: bool = False, settled: bool = False
    ) -> Node | None:
        """Watch a directory that was found; None when it is too far down, or watched already.

        Then it was moved there. The events of that are to come, but for what came before `parent` was watched.
        """
        if self._is_too_far(parent, name):
            return None
        node, new = self._tree.add(fd, parent, name)
        if new:
            return node
        if (node.parent, node.name) == (parent, name) or node.parent is None:
            return None
        if settled:
            self._drop(node)
            return self._tree.add(fd, parent, name)[0] if self._tree.is_live(parent) else None
        self._doubts[(node.parent, node.name)] = Doubt()
        self._doubts[(parent, name)] = Doubt(told)
        return None

    def _is_too_far(self, parent: Node, name: bytes) -> bool:
        """Whether no call takes the paths in that directory. It is told then that we are blind there."""
        names = self._tree.path(parent, name)
        far = len(names) >= DEPTH_MAX or sum(map(len, names)) + len(names) > PATH_BYTES_MAX
        if far:
            self._say("overflow", names)
        return far

    def _scan(self, fd: int, parent: Node, name: bytes, *, told: bool, settled: bool) -> Steps:
        node = self._watch(fd, parent, name, told=told, settled=settled)
        if node is None:
            return
        if not told:
            self._tell("create", parent, name, is_dir=True)
        way: list[Node | None] = [node]
        for step in walk(fd, self._tree.path(node), tolerant=True):
            above = way[-1]
            if step.leaving:
                way.pop()
                continue
            if step.fd >= 0:
                way.append(None if above is None else self._watch(step.fd, above, step.names[-1]))
            if above is None or (step.fd >= 0 and way[-1] is None):
                yield None
                continue
            if not above.seen:
                self._scanned.append(above)
            above.seen.add(step.names[-1])
            self._tell("create", above, step.names[-1], is_dir=step.fd >= 0)
            if stat.S_ISREG(step.found.st_mode) and step.found.st_size:
                self._written.setdefault((above, step.names[-1]), time.monotonic())
            yield from self._many()
            yield None

    def _scan_all(self) -> Steps:
        """Watch all that is there, and tell nothing of it."""
        top = self._tree.open_top()
        way: list[Node | None] = [self._tree.root]
        try:
            for step in walk(top, self._tree.names, tolerant=True):
                above = way[-1]
                if step.leaving:
                    way.pop()
                elif step.fd >= 0:
                    way.append(None if above is None else self._watch(step.fd, above, step.names[-1]))
                yield None
        finally:
            os.close(top)

    def _start_anew(self) -> Steps:
        """We missed something: say so, and look again at what there is."""
        self._events.clear()
        self._say("overflow", (), is_dir=True)
        self._written.clear()
        self._leaving.clear()
        self._doubts.clear()
        for node in list(self._tree.root.children.values()):
            self._tree.forget(node)
        if self._recursive:
            try:
                yield from self._scan_all()
            except (OSError, Problem):
                self._end("lost")

    # Telling

    def _end(self, reason: str) -> None:
        self._over = True
        self._events.append(("end", {"reason": reason}))

    def _tell_written(self, key: tuple[Node, bytes]) -> None:
        del self._written[key]
        if self._tree.is_live(key[0]):
            self._tell("modify", *key, is_dir=False)

    def _tell(self, kind: str, node: Node, name: bytes, *, is_dir: bool, from_: str | None = None) -> None:
        self._say(kind, self._tree.path(node, name), is_dir=is_dir, from_=from_)

    def _say(
        self, kind: str, names: tuple[bytes, ...], *, is_dir: bool = True, from_: str | None = None
    ) -> None:
        members: dict[str, Any] = {"path": text(b"/".join(names or self._tree.names)), "is_dir": is_dir}
        if from_ is not None:
            members["from"] = from_
        self._events.append((kind, members))

    def _take(self) -> list[Event]:
        events, self._events = self._events, []
        return events
