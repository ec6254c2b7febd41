"""Unpacking an archive as it comes in. It is hostile until proven otherwise, and so are programs that run meanwhile.

Nothing is written through a link: each directory on the way is opened by itself, from the one that
the archive goes to. A member is there whole or not at all.
"""

from __future__ import annotations

import errno
import os
import tarfile
import zlib
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from agentcube.picod.files.entries import REPLACES, refuse, shown
from agentcube.picod.files.files import Files
from agentcube.picod.files.tar_members import End, Event, Member, TarParser
from agentcube.picod.files.uploads import Part, hidden_name, link, put_in_place
from agentcube.picod.files.walk import OPEN_DIRECTORY
from agentcube.picod.paths import DEPTH_MAX, PATH_BYTES_MAX
from agentcube.picod.problems import Problem

_GZIP = b"\x1f\x8b"
_PIECE = 256 * 1024
_REFUSED = {
    tarfile.CHRTYPE: "device nodes are not unpacked",
    tarfile.BLKTYPE: "device nodes are not unpacked",
    tarfile.FIFOTYPE: "FIFOs are not unpacked",
}


@dataclass
class Unpacked:
    """How much was."""

    entries: int = 0
    bytes: int = 0


def unpack(
    files: Files, path: bytes, gzip: bool | None, inbox: deque[bytes]
) -> Generator[bool | None, None, Unpacked]:
    """Unpack below the directory `path`, which is made as needed. `gzip` None: look at how it begins.

    Yields True when it wants a piece of the archive in `inbox`; b"" there is the archive's end.

    Raises:
        Problem: names the member that is to blame; how much was unpacked before is in its context.
    """
    done = Unpacked()
    base = files.names(path)
    try:
        top = files.workspace.make_directories(base)
    except OSError as exc:
        refuse(exc, path)
    target = _Target(top, len(base), done)
    try:
        parser, source = TarParser(), _Source(gzip)
        while not source.ended:
            if not inbox:
                yield True
                continue
            for piece in source.pieces(inbox.popleft()):
                for event in parser.feed(piece):
                    target.take(event)
                    yield None
        parser.finish()
        target.leave(0)
        return done
    except Problem as exc:
        exc.context.update(entries=done.entries, bytes=done.bytes)
        raise
    finally:
        target.close()


class _Source:
    """The archive's bytes, decompressed where they are compressed, at most `_PIECE` at a time."""

    def __init__(self, gzip: bool | None) -> None:
        self._gzip = gzip
        self._begin = b""  # what came before we knew
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._fresh = True  # at the begin of a gzip member
        self.ended = False

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """The plain bytes in `data`; b"" ends it."""
        self.ended = not data
        if self._gzip is None:
            self._begin += data
            if len(self._begin) < len(_GZIP) and data:
                return
            self._gzip = self._begin.startswith(_GZIP)
            self._begin, data = b"", self._begin
        if not self._gzip:
            yield data
            return
        try:
            yield from self._inflated(data)
        except zlib.error:
            raise Problem("invalid", "the archive is damaged, or is not gzipped") from None
        if self.ended and not (self._inflate.eof or self._fresh):
            raise Problem("invalid", "the archive breaks off in the middle of its compressed data")

    def _inflated(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflate.eof:
                if not data.startswith(_GZIP[:1]):
                    return  # padding
                self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
            self._fresh = False
            piece = self._inflate.decompress(data, _PIECE)
            while piece:
                yield piece
                piece = self._inflate.decompress(self._inflate.unconsumed_tail, _PIECE)
            data = self._inflate.unused_data


@dataclass
class _Open:
    """A directory that is being unpacked into; `member` tells what it is to be like in the end."""

    name: bytes
    fd: int
    member: Member | None = None


class _Target:
    """Where members go. It keeps the directory of the last one open, and those above it."""

    def __init__(self, top: int, above: int, done: Unpacked) -> None:
        self._open = [_Open(b"", top)]
        self._above = above
        self._done = done
        self._member: Member | None = None
        self._names: tuple[bytes, ...] = ()
        self._part: Part | None = None

    def take(self, event: Event) -> None:
        """Do what the archive says. Problem when that cannot be."""
        if isinstance(event, Member):
            self._member = event
        assert self._member is not None
        try:
            if isinstance(event, Member):
                self._begin(event)
            elif isinstance(event, End):
                self._end(self._member)
            elif self._part is not None:
                self._part.append(event)
                self._done.bytes += len(event)
        except OSError as exc:
            if exc.errno == errno.ENOENT:  # removed meanwhile
                raise Problem("conflict", f"{shown(self._member.name)}: its directory is gone") from exc
            refuse(exc, self._member.name)

    def _begin(self, member: Member) -> None:
        names = self._names = self._clean(member.name, member.name)
        if member.kind in _REFUSED:
            raise Problem("invalid", f"{shown(member.name)}: {_REFUSED[member.kind]}")
        if member.kind == tarfile.DIRTYPE:
            self._enter(names, member, 0o700)
            if names:  # the directory that all goes to is the caller's
                self._open[-1].member = member
            return
        if not names:
            raise Problem("invalid", f"{shown(member.name)} is the directory itself")
        self._enter(names[:-1], member)
        if member.is_file:
            self._part = Part(os.dup(self._open[-1].fd))
        elif member.kind == tarfile.SYMTYPE:
            if not member.link or b"\x00" in member.link or len(member.link) > PATH_BYTES_MAX:
                raise Problem("invalid", f"{shown(member.name)}: a link needs a target that is a path")
            link(member.link, self._open[-1].fd, names[-1], member.modified_ns)
        elif member.kind == tarfile.LNKTYPE:
            self._link_hard(member, names[-1])
        else:
            raise Problem(
                "invalid", f"{shown(member.name)}: members of type {member.kind!r} are not unpacked"
            )

    def _end(self, member: Member) -> None:
        if self._part is not None:
            part, self._part = self._part, None
            try:
                part.finish(self._names, member.mode & 0o777, modified_ns=member.modified_ns)
            finally:
                part.discard()
        self._done.entries += 1

    def _clean(self, path: bytes, member: bytes) -> tuple[bytes, ...]:
        """The names in a path of the archive. Problem when it does not stay below."""
        names = tuple(name for name in path.split(b"/") if name not in (b"", b"."))
        if path.startswith(b"/") or b".." in names or b"\x00" in path:
            raise Problem("invalid", f"{shown(member)}: {shown(path)} does not stay below the directory")
        if self._above + len(names) > DEPTH_MAX:
            raise Problem("invalid", f"{shown(member)} is below more than {DEPTH_MAX} directories")
        return names

    def _enter(self, names: tuple[bytes, ...], member: Member, mode: int = 0o755) -> None:
        """Open a directory below the top; what is missing is made. Raises OSError."""
        kept = 0
        for open_, name in zip(self._open[1:], names):
            if open_.name != name:
                break
            kept += 1
        self.leave(kept)
        for number, name in enumerate(names[kept:], kept + 1):
            above = self._open[-1].fd
            try:
                fd = _open_directory(above, name, member)
            except FileNotFoundError:
                try:
                    os.mkdir(name, mode if number == len(names) else 0o755, dir_fd=above)
                except FileExistsError:
                    pass
                fd = _open_directory(above, name, member)
            self._open.append(_Open(name, fd))

    def leave(self, kept: int) -> None:
        """Close the directories from the last down to `kept` below the top; they get their modes and times."""
        while len(self._open) - 1 > kept:
            open_ = self._open.pop()
            try:
                if open_.member is not None:
                    os.fchmod(open_.fd, open_.member.mode & 0o1777)
                    os.utime(open_.fd, ns=(open_.member.modified_ns, open_.member.modified_ns))
            except OSError as exc:
                refuse(exc, open_.member.name if open_.member else open_.name)
            finally:
                os.close(open_.fd)

    def _link_hard(self, member: Member, name: bytes) -> None:
        """Make another name of a file below the top. Raises OSError."""
        target = self._clean(member.link, member.name)
        directory = os.dup(self._open[0].fd)
        temporary = hidden_name()
        try:
            for above in target[:-1]:
                below = _open_directory(directory, above, member)
                os.close(directory)
                directory = below
            os.link(
                target[-1] if target else b".",
                temporary,
                src_dir_fd=directory,
                dst_dir_fd=self._open[-1].fd,
                follow_symlinks=False,
            )
        except FileNotFoundError:
            raise Problem(
                "invalid", f"{shown(member.name)}: there is no {shown(member.link)} to link to"
            ) from None
        finally:
            os.close(directory)
        here = self._open[-1].fd
        put_in_place(temporary, here, name, here)
        for left in (temporary, temporary + REPLACES):
            # Renaming one name of a file to another of the same does nothing (rename(2)).
            try:
                os.unlink(left, dir_fd=here)
            except FileNotFoundError:
                pass

    def close(self) -> None:
        """Let go of everything; a file that is not whole is removed."""
        if self._part is not None:
            self._part.discard()
        try:
            self.leave(0)
        except Problem:
            pass  # on the way out for another reason
        finally:
            for open_ in self._open:
                os.close(open_.fd)


def _open_directory(above: int, name: bytes, member: Member) -> int:
    try:
        return os.open(name, OPEN_DIRECTORY, dir_fd=above)
    except OSError as exc:
        if exc.errno in (errno.ENOTDIR, errno.ELOOP):
            raise Problem(
                "invalid", f"{shown(member.name)}: {shown(name)} on the way is a link or no directory"
            ) from None
        raise
