"""Reading a tar archive as it comes in: ustar, pax and GNU's long names. Pure: bytes to members."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Union

from agentcube.picod.files.entries import shown
from agentcube.picod.problems import Problem

BLOCK = tarfile.BLOCKSIZE
EXTENDED_BYTES_MAX = 1 << 20  # of a pax header or a long name
_GNU_LONG = {tarfile.GNUTYPE_LONGNAME: b"path", tarfile.GNUTYPE_LONGLINK: b"linkpath"}
_SPARSE = b"GNU.sparse"  # how the names of its records begin
_KEYS = frozenset((b"path", b"linkpath", b"size", b"mtime", _SPARSE))
_SECONDS_MAX = 1 << 40  # either side of 1970: what file systems can keep
_DECIMAL = re.compile(rb"(-?)([0-9]{1,18})(?:\.([0-9]*))?")
_PIECE = 256 * 1024
_OTHER_FORMATS = (
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\x03\x04", "zip"),
)


@dataclass(frozen=True)
class Member:
    """A member's head. `kind` is its type flag, `size` the bytes of content that follow."""

    name: bytes
    kind: bytes
    size: int
    mode: int
    modified_ns: int
    link: bytes

    @property
    def is_file(self) -> bool:
        """Whether it is a regular file, which alone has content."""
        return self.kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


@dataclass(frozen=True)
class End:
    """The content of the last member is complete."""


Event = Union[Member, bytes, End]


class TarParser:
    """Push parser. `feed` yields members, pieces of their content, and `End` after each."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0  # bytes of content of the member that is coming in
        self._padding = 0
        self._extended: tuple[bytes, int] | None = None  # type and size of a header that is coming in
        self._global: dict[bytes, bytes] = {}
        self._next: dict[bytes, bytes] = {}  # what headers said of the member to come
        self._inside = False
        self._begun = False
        self.ended = False  # the archive's end was seen: what follows is ignored

    def feed(self, data: bytes) -> Iterator[Event]:
        """What is certain with `data`. Problem when it is no archive."""
        self._buffer += data
        while not self.ended:
            if self._inside:
                yield from self._content()
                if self._inside:
                    return
            elif self._extended is not None:
                size = self._extended[1]
                if len(self._buffer) < size + padding(size):
                    return
                self._take_extended(*self._extended)
            else:
                if len(self._buffer) < BLOCK:
                    return
                member = self._take_head()
                if member is not None:
                    yield member
                    self._inside = True
        self._buffer.clear()

    def finish(self) -> None:
        """No more comes. Problem when that is in the middle of something."""
        if not self._begun:
            raise Problem("invalid", self._why_not(bytes(self._buffer)))
        if not self.ended and (self._inside or self._extended or self._next or any(self._buffer)):
            raise Problem("invalid", "the archive breaks off in the middle of a member")

    def _content(self) -> Iterator[Event]:
        while self._left and self._buffer:
            piece = bytes(self._buffer[: min(self._left, _PIECE)])
            del self._buffer[: len(piece)]
            self._left -= len(piece)
            yield piece
        if self._left == 0:
            skipped = min(self._padding, len(self._buffer))
            del self._buffer[:skipped]
            self._padding -= skipped
            if self._padding == 0:
                self._inside = False
                yield End()

    def _take_head(self) -> Member | None:
        block = bytes(self._buffer[:BLOCK])
        if not any(block):
            self.ended = self._begun = True
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise Problem("invalid", self._why_not(block)) from None
        del self._buffer[:BLOCK]
        self._begun = True
        if info.type in (*_GNU_LONG, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            if not 0 <= info.size <= EXTENDED_BYTES_MAX:
                raise Problem("invalid", f"a header of the archive is over {EXTENDED_BYTES_MAX >> 20} MiB")
            self._extended = (info.type, info.size)
            return None
        return self._member(info)

    def _why_not(self, block: bytes) -> str:
        if self._begun:
            return "the archive is damaged: what should be a header is none"
        for magic, name in _OTHER_FORMATS:
            if block.startswith(magic):
                return f"the body is {name}: send a tar archive, plain or gzipped"
        return "the body is no tar archive" if block else "the body is empty: send a tar archive"

    def _member(self, info: tarfile.TarInfo) -> Member:
        said = {**self._global, **self._next}
        self._next = {}
        name = said.get(b"path", _encoded(info.name))
        size = _number(said[b"size"]) if b"size" in said else info.size
        if info.type == tarfile.GNUTYPE_SPARSE or _SPARSE in said:
            raise Problem(
                "invalid", f"{shown(name)}: sparse members are not supported; pack without --sparse"
            )
        if size < 0:
            raise _damaged("a size is negative")
        seconds = max(-_SECONDS_MAX, min(info.mtime, _SECONDS_MAX)) * 1_000_000_000
        modified_ns = _nanoseconds(said[b"mtime"]) if b"mtime" in said else int(seconds)
        link = said.get(b"linkpath", _encoded(info.linkname))
        member = Member(name, info.type, size, info.mode, modified_ns, link)
        self._left = member.size if member.is_file else 0
        self._padding = padding(self._left)
        return member

    def _take_extended(self, kind: bytes, size: int) -> None:
        data = bytes(self._buffer[:size])
        del self._buffer[: size + padding(size)]
        self._extended = None
        if kind in _GNU_LONG:
            self._next[_GNU_LONG[kind]] = data.partition(b"\x00")[0]
            return
        target = self._global if kind == tarfile.XGLTYPE else self._next
        for key, value in _records(data):
            if value:
                target[key] = value
            else:
                target.pop(key, None)


def padding(size: int) -> int:
    """How many bytes follow content of `size` bytes, up to the next block."""
    return -size % BLOCK


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What matters of a pax header: "length key=value" and a line end each (POSIX.1-2017, pax, "Extended Header")."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        end = at + _number(data[at : max(at, space)])
        equals = data.find(b"=", space, end)
        if equals < 0 or end > len(data) or data[end - 1 : end] != b"\n":
            raise _damaged("a pax header is malformed")
        key = data[space + 1 : equals]
        if key.startswith(_SPARSE):
            key = _SPARSE
        if key in _KEYS:
            yield key, data[equals + 1 : end - 1]
        at = end


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise _damaged("a number is none")
    return int(text)


def _nanoseconds(text: bytes) -> int:
    match = _DECIMAL.fullmatch(text)
    if match is None:
        raise _damaged("a time is none")
    sign, whole, fraction = match.groups()
    value = min(int(whole), _SECONDS_MAX) * 1_000_000_000 + int((fraction or b"").ljust(9, b"0")[:9])
    return -value if sign else value


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _damaged(why: str) -> Problem:
    return Problem("invalid", f"the archive is damaged: {why}")
