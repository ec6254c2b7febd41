"""What happens to files below a directory, from inotify(7): made, written, removed, renamed.

A new directory is watched first and read then, so nothing in it is missed; what a scan told of is not
told again when its own event comes. A directory that moves takes its watch along.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, Union, cast

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
    Node,
    Tree,
    upwards,
)
from agentcube.picod.problems import Problem

COALESCE_S = 0.05  # writes to one file are told once in it; halves of a rename find each other
LOOK_S = (
    2.0  # how often a silent watch looks for its directory, which says nothing if removed with somebody in it
)
_READ_BYTES = 64 * 1024
_EVENTS_AT_ONCE = 256
_HELD_MAX = 4096
_LOST_MAX = 1024  # directories that could not be found, which may turn up under another name
_HEAD = struct.Struct("=iIII")  # watch, mask, cookie, length of the name

Event = tuple[str, dict[str, Any]]
_Raw = tuple[int, int, int, bytes]  # watch, mask, cookie, name


@dataclass
class Batch:
    """Events to send. After that, unless `wait` is None: wait for the descriptor, that long at most."""

    events: list[Event] = field(default_factory=list)
    wait: float | None = None


Steps = Generator[Union[Batch, None], None, None]


@dataclass
class _Leaving:
    """The first half of a rename."""

    node: Node
    name: bytes
    is_dir: bool
    since: float


class Watch:
    """One watch. Made in a worker thread; then `run` is its work, which ends with it and closes it."""

    def __init__(self, files: Files, path: bytes, *, recursive: bool) -> None:
        self._tree = Tree(files, path)
        self._recursive = recursive
        self._events: list[Event] = []
        self._written: dict[tuple[Node, bytes], float] = {}  # since when, oldest first
        self._leaving: dict[int, _Leaving] = {}  # by cookie
        self._held: list[_Raw] = []
        self._settled = False  # something that events are held for
        self._found: dict[Node, tuple[Node, bytes]] = {}
        self._doubt: dict[tuple[Node, bytes], None] = {}
        self._lost: dict[tuple[Node, bytes], None] = {}
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
            self._say("ready", ())
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
                name = data[at - length : at].rstrip(b"\x00")
                if mask & IN_Q_OVERFLOW:
                    yield from self._start_anew()
                else:
                    yield from self._on_raw((watch, mask, cookie, name))
                    yield from self._replay()
            if self._over:
                return
            self._flush(time.monotonic())
            yield from self._replay()
            yield Batch(self._take()) if len(self._events) >= _EVENTS_AT_ONCE else None
        for node in self._scanned:
            node.seen.clear()  # what was in the queue when it was scanned has been read
        self._scanned.clear()
        lost, self._lost = self._lost, {}
        for node, name in lost:
            yield from self._adopt(node, name)
        if not self._leaving and not self._held:
            yield from self._resolve()
        if nothing and not self._leaving and not self._written and not self._tree.is_in_place():
            self._end("gone")
        self._flush(time.monotonic())
        yield from self._replay()

    def _due(self) -> float:
        begins = [leaving.since for leaving in self._leaving.values()]
        begins.extend(list(self._written.values())[:1])
        if not begins:
            return COALESCE_S if self._lost else LOOK_S
        return max(0.0, min(begins) + COALESCE_S - time.monotonic())

    def _flush(self, now: float) -> None:
        """Tell what has waited long enough."""
        for cookie, leaving in list(self._leaving.items()):
            if leaving.since + COALESCE_S <= now:
                self._left_for_good(cookie)
        for key, since in list(self._written.items()):
            if since + COALESCE_S > now:
                break
            self._tell_written(key)

    # What events mean

    def _on_raw(self, raw: _Raw) -> Steps:
        """Interpret an event, or hold it until we know where its directory has gone."""
        watch, mask, cookie, _ = raw
        node = self._tree.nodes.get(watch)
        if node is None:
            return  # what we watch no longer
        second_half = mask & IN_MOVED_TO and cookie in self._leaving
        for other, leaving in list(self._leaving.items()):
            # Both halves of a rename come before anything else of the directories it concerns.
            # So what happens to a directory at a place where it was found says that it has got there.
            child = leaving.node.children.get(leaving.name)
            found = child is not None and self._found.get(child) == (node, raw[3])
            if (found or leaving.node is node) and not (second_half and other == cookie):
                self._left_for_good(other)
        if second_half or not (self._held or self._is_leaving(node)):
            yield from self._on_event(node, *raw[1:])
            return
        self._held.append(raw)
        if len(self._held) > _HELD_MAX:
            for other in list(self._leaving):
                self._left_for_good(other)

    def _is_leaving(self, node: Node) -> bool:
        """Whether a directory above was renamed to we do not know yet where."""
        if not self._leaving:
            return False
        moving = [leaving.node.children.get(leaving.name) for leaving in self._leaving.values()]
        return any(above in moving for above in upwards(node))

    def _replay(self) -> Steps:
        """Go on with what was held, as far as that is possible now."""
        while self._settled and self._held:
            self._settled = False
            held, self._held = self._held, []
            for raw in held:
                yield from self._on_raw(raw)
        self._settled = False

    def _on_event(self, node: Node, mask: int, cookie: int, name: bytes) -> Steps:
        if not name:
            self._on_directory(node, mask)
            return
        is_dir = bool(mask & IN_ISDIR)
        if mask & IN_MOVED_FROM:
            self._leaving[cookie] = _Leaving(node, name, is_dir, time.monotonic())
        elif mask & IN_MOVED_TO:
            self._settled = True
            yield from self._arrived(node, name, self._leaving.pop(cookie, None), is_dir=is_dir)
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
            self._doubt[(node.parent, node.name)] = None
            self._tree.forget(node)

    def _made(self, node: Node, name: bytes, *, is_dir: bool) -> Steps:
        if name in node.seen:
            node.seen.discard(name)
        else:
            self._tell("create", node, name, is_dir=is_dir)
        if is_dir and self._recursive and name not in node.children:
            yield from self._adopt(node, name)

    def _gone(self, node: Node, name: bytes, *, is_dir: bool) -> None:
        node.seen.discard(name)
        self._written.pop((node, name), None)
        self._tell("delete", node, name, is_dir=is_dir)
        if name in node.children:
            self._tree.forget(node.children[name])

    def _arrived(self, node: Node, name: bytes, from_: _Leaving | None, *, is_dir: bool) -> Steps:
        """The second half of a rename; without the first it came from outside."""
        if from_ is not None and from_.name.startswith(HIDDEN):
            if from_.name.endswith(REPLACES) and not name.startswith(HIDDEN):
                self._written.setdefault((node, name), time.monotonic())
                return
            from_ = None
        if name.startswith(HIDDEN):
            if from_ is not None:
                self._gone(from_.node, from_.name, is_dir=is_dir)
        elif from_ is None:
            yield from self._made(node, name, is_dir=is_dir)
            if not is_dir:
                self._written.setdefault((node, name), time.monotonic())
        else:
            yield from self._renamed(from_, node, name)

    def _renamed(self, from_: _Leaving, node: Node, name: bytes) -> Steps:
        old = (from_.node, from_.name)
        if old in self._written:
            self._tell_written(old)
        self._written.pop((node, name), None)  # what was there is replaced
        from_.node.seen.discard(from_.name)
        node.seen.discard(name)
        self._tell("rename", node, name, is_dir=from_.is_dir, from_=self._text(from_))
        child = from_.node.children.get(from_.name)
        if child is not None:
            self._found.pop(child, None)
            self._tree.move(child, node, name)
        elif from_.is_dir and self._recursive:
            yield from self._adopt(node, name)

    def _left_for_good(self, cookie: int) -> None:
        leaving = self._leaving.pop(cookie)
        self._settled = True
        child = leaving.node.children.get(leaving.name)
        place = None if child is None else self._found.pop(child, None)
        if child is not None and place is not None and self._tree.is_live(place[0]):
            self._tell("rename", *place, is_dir=True, from_=self._text(leaving))
            self._tree.move(child, *place)
        elif not leaving.name.startswith(HIDDEN):
            self._gone(leaving.node, leaving.name, is_dir=leaving.is_dir)

    def _text(self, leaving: _Leaving) -> str:
        return text(b"/".join(self._tree.path(leaving.node, leaving.name)))

    # Directories that come up

    def _resolve(self) -> Steps:
        """Look where events and what was found do not fit: something went so fast that we took one for another."""
        for node, place in self._found.items():
            self._doubt[place] = None
            if self._tree.is_live(node):
                self._doubt[(cast(Node, node.parent), node.name)] = None
                self._tree.forget(node)
        self._found.clear()
        doubt, self._doubt = self._doubt, {}
        for place in doubt:
            yield from self._adopt(*place, tell=False)

    def _adopt(self, node: Node, name: bytes, *, tell: bool = True) -> Steps:
        """Watch a directory that an event told of, and tell what is in it, or else that it has to be looked at."""
        if not self._tree.is_live(node):
            return
        try:
            above = self._tree.open(node)
        except OSError as exc:
            if exc.errno not in SWAPPED and exc.errno != errno.ESTALE:
                self._tell("overflow", node, name, is_dir=True)
                return
            self._lost[(node, name)] = None  # one above it moved meanwhile, which an event to come will tell
            if len(self._lost) > _LOST_MAX:
                yield from self._start_anew()
            return
        try:
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=above)
        except OSError as exc:
            if exc.errno not in SWAPPED:
                self._tell("overflow", node, name, is_dir=True)
            return
        finally:
            os.close(above)
        try:
            if not tell:
                self._tell("overflow", node, name, is_dir=True)
            yield from self._scan(fd, node, name, tell=tell)
        except Problem:
            self._tell("overflow", node, name, is_dir=True)  # too many, or too deep: we are blind there
        finally:
            os.close(fd)

    def _look(self, fd: int, parent: Node, name: bytes) -> Node | None:
        """Watch a directory that was found; None when it is watched already.

        Then it was moved there: the events of that are to come, but for what came before `parent`
        was watched. Until then it stays where they have left it.
        """
        node, new = self._tree.add(fd, parent, name)
        if new:
            return node
        if (node.parent, node.name) != (parent, name):
            self._found[node] = (parent, name)
        return None

    def _scan(self, fd: int, parent: Node, name: bytes, *, tell: bool = True) -> Steps:
        node = self._look(fd, parent, name)
        if node is None:
            return
        way: list[Node | None] = [node]
        for step in walk(fd, self._tree.path(node), tolerant=True):
            above = way[-1]
            if step.leaving:
                way.pop()
                continue
            if step.fd >= 0:
                way.append(None if above is None else self._look(step.fd, above, step.names[-1]))
            if not tell or above is None or (step.fd >= 0 and way[-1] is None):
                yield None
                continue
            if not above.seen:
                self._scanned.append(above)
            above.seen.add(step.names[-1])
            self._tell("create", above, step.names[-1], is_dir=step.fd >= 0)
            if stat.S_ISREG(step.found.st_mode) and step.found.st_size:
                self._written.setdefault((above, step.names[-1]), time.monotonic())
            yield Batch(self._take()) if len(self._events) >= _EVENTS_AT_ONCE else None

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
                    way.append(None if above is None else self._look(step.fd, above, step.names[-1]))
                yield None
        finally:
            os.close(top)

    def _start_anew(self) -> Steps:
        """We missed something: say so, and look again at what there is."""
        self._events.clear()
        self._say("overflow", (), is_dir=True)
        self._written.clear()
        self._leaving.clear()
        self._held.clear()
        self._lost.clear()
        self._doubt.clear()
        self._found.clear()
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
