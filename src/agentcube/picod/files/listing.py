"""Listings of whole trees, in pages: by name, a directory before what is in it. Links are not followed."""

from __future__ import annotations

import base64
import binascii
import heapq
import json
import os
import stat
from collections.abc import Generator
from dataclasses import dataclass

from agentcube.picod.files.entries import HIDDEN, entry_at, refuse, shown
from agentcube.picod.files.files import LIST_MAX, Files
from agentcube.picod.files.globs import Glob
from agentcube.picod.files.walk import OPEN_DIRECTORY, SWAPPED
from agentcube.picod.paths import DEPTH_MAX
from agentcube.picod.problems import Problem

_NAMES_LEAST = (
    100  # that are sorted at once: half as many with each level, so that all of them are 3 MB at most
)
_PIECE = 32 * 1024  # of the answer; no more of it is kept than that


@dataclass(frozen=True)
class Wanted:
    """What to list: below `path`, `depth` levels (1: what is in it), what `glob` matches, from `after` on."""

    path: bytes
    depth: int = DEPTH_MAX
    glob: Glob | None = None
    limit: int = LIST_MAX
    after: tuple[bytes, ...] = ()  # names from `path` down


class _Level:
    """A directory on the way: its names in order, read a number at a time, from `first` on."""

    def __init__(self, fd: int, names: tuple[bytes, ...], state: frozenset[int], first: bytes) -> None:
        self.fd = fd
        self.names = names
        self.state = state
        self._batch: list[bytes] = []
        self._from = first
        self._at_once = max(_NAMES_LEAST, LIST_MAX >> len(names))
        self._more = True

    def next(self) -> bytes | None:
        if not self._batch and self._more:
            with os.scandir(self.fd) as listing:
                names = (os.fsencode(entry.name) for entry in listing)
                fitting = (name for name in names if name >= self._from and not name.startswith(HIDDEN))
                self._batch = heapq.nsmallest(self._at_once, fitting)
            self._more = len(self._batch) == self._at_once
            if self._batch:
                self._from = self._batch[-1] + b"\x00"  # the least that is greater
            self._batch.reverse()
        return self._batch.pop() if self._batch else None


def list_tree(files: Files, wanted: Wanted) -> Generator[bytes | None, None, None]:
    """The answer in JSON, a piece at a time: the entries, and the cursor of the next page if there is one.

    The first piece is b"": by then the directory is known to be one. What changes meanwhile may be
    listed or not. Directories that cannot be read are listed, and nothing in them; so are those with
    `DEPTH_MAX` names in their path.
    """
    base = files.names(wanted.path)
    try:
        top = files.workspace.open(base, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise Problem("invalid", f"{shown(wanted.path)} is no directory") from None
    except OSError as exc:
        refuse(exc, wanted.path)
    out = bytearray(b'{"files": [')
    count, last = 0, wanted.after
    deepest = min(wanted.depth, DEPTH_MAX - len(base))
    state = wanted.glob.start if wanted.glob else frozenset()
    stack = [_Level(top, (), state, wanted.after[0] if wanted.after else b"")]
    try:
        yield b""
        while stack:
            level = stack[-1]
            name = level.next()
            piece = bytes(out) if len(out) >= _PIECE else None
            if piece:
                out.clear()
            yield piece
            if name is None:
                os.close(stack.pop().fd)
                continue
            names = (*level.names, name)
            state = wanted.glob.step(level.state, name) if wanted.glob else level.state
            if wanted.glob and not state:
                continue
            try:
                entry = entry_at(level.fd, (*base, *names))
            except OSError:
                continue  # removed meanwhile
            seen = names <= wanted.after  # a directory of the page before, or on the way to where that ended
            if not seen and (wanted.glob is None or wanted.glob.matches(state)):
                if count == wanted.limit:
                    yield bytes(out) + b'], "next_cursor": "%b"}' % _cursor(last)
                    return
                out += b", " if count else b""
                out += json.dumps(entry.members()).encode("ascii")
                count, last = count + 1, names
            if (
                stat.S_ISDIR(entry.found.st_mode)
                and len(names) < deepest
                and (wanted.glob is None or wanted.glob.may_go_on(state))
            ):
                fd = _opened(level.fd, name)
                if fd >= 0:
                    resumed = names == wanted.after[: len(names)] and len(wanted.after) > len(names)
                    first = wanted.after[len(names)] if resumed else b""
                    stack.append(_Level(fd, names, state, first))
        yield bytes(out) + b"]}"
    except OSError as exc:
        refuse(exc, wanted.path)
    finally:
        for level in stack:
            os.close(level.fd)


def _opened(directory: int, name: bytes) -> int:
    """-1: it is no directory any more, or not ours to read."""
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=directory)
    except PermissionError:
        return -1
    except OSError as exc:
        if exc.errno not in SWAPPED:
            raise
        return -1


def _cursor(names: tuple[bytes, ...]) -> bytes:
    return base64.urlsafe_b64encode(b"/".join(names))


def parse_cursor(text: str) -> tuple[bytes, ...]:
    """The names that a cursor of `list_tree` stands for. Problem when it is none."""
    try:
        names = tuple(base64.b64decode(text, altchars=b"-_", validate=True).split(b"/"))
    except (binascii.Error, ValueError):
        names = ()
    if not 0 < len(names) <= DEPTH_MAX or not all(names):
        raise Problem("invalid", "the cursor is none that a listing gave")
    return names
