"""Packing a directory into an archive that goes out as it is made."""

from __future__ import annotations

import os
import stat
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from agentcube.picod.files.entries import refuse, shown
from agentcube.picod.files.files import Files
from agentcube.picod.files.tar_members import BLOCK, padding
from agentcube.picod.files.walk import Step, walk
from agentcube.picod.problems import Problem

_PIECE = 256 * 1024
_LINKS_MAX = 16_384  # files with several names that are remembered; beyond, each name is a file of its own
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_RECORD = 20 * BLOCK  # archives end on a whole one, as tape drives once needed (POSIX.1-2017, pax)
_NAME_BYTES, _ID_MAX, _SIZE_MAX, _TIME_MAX = 100, 0o7777777, 0o77777777777, 0o77777777777
_KINDS = {stat.S_IFREG: tarfile.REGTYPE, stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFLNK: tarfile.SYMTYPE}


def pack(
    files: Files, path: bytes, *, gzip: bool, user: tuple[int, int]
) -> Generator[bytes | None, None, None]:
    """The archive, a piece at a time. Names are relative to `path`; what has no content and is no link is left out.

    The first piece is b"": by then all of it was seen to be readable by `user` (uid, gid).

    Raises:
        Problem: names what cannot be read. After the first piece: what was given is no whole archive.
    """
    packer = _Packer(zlib.compressobj(wbits=zlib.MAX_WBITS | 16) if gzip else None)
    with _directory(files, path) as (fd, base):
        for step in walk(fd, base):
            if stat.S_ISREG(step.found.st_mode) and not _is_readable(step.found, *user):
                raise Problem("forbidden", f"{shown(b'/'.join((*base, *step.names)))} cannot be read")
            yield None
        yield b""
        for step in walk(fd, base):
            if step.leaving or stat.S_IFMT(step.found.st_mode) not in _KINDS:
                continue
            try:
                yield from packer.add(step)
            except FileNotFoundError:
                pass  # removed meanwhile
            except OSError as exc:
                refuse(exc, b"/".join((*base, *step.names)))
            yield packer.piece()
    yield packer.end()


def _is_readable(found: os.stat_result, uid: int, gid: int) -> bool:
    if found.st_uid == uid:
        return bool(found.st_mode & stat.S_IRUSR) or uid == 0
    return bool(found.st_mode & (stat.S_IRGRP if found.st_gid == gid else stat.S_IROTH)) or uid == 0


@contextmanager
def _directory(files: Files, path: bytes) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    names = files.names(path)
    try:
        fd = files.workspace.open(names, os.O_RDONLY | os.O_DIRECTORY)
    except NotADirectoryError:
        raise Problem("invalid", f"{shown(path)} is no directory") from None
    except OSError as exc:
        refuse(exc, path)
    try:
        yield fd, names
    finally:
        os.close(fd)


class _Packer:
    def __init__(self, deflate: zlib._Compress | None) -> None:
        self._deflate = deflate
        self._out = bytearray()
        self._size = 0
        self._linked: dict[tuple[int, int], bytes] = {}  # device, inode: the name it was packed under

    def piece(self, least: int = _PIECE) -> bytes | None:
        """What is ready to go out, if that is `least` bytes."""
        if len(self._out) < least:
            return None
        piece = bytes(self._out)
        self._out.clear()
        return piece

    def end(self) -> bytes:
        """The end of the archive, with all that is left."""
        self._write(bytes(2 * BLOCK))
        self._write(bytes(-self._size % _RECORD))
        if self._deflate is not None:
            self._out += self._deflate.flush()
        return bytes(self._out)

    def add(self, step: Step) -> Generator[bytes | None, None, None]:
        """Pack one thing. Raises OSError; FileNotFoundError before anything of it was packed."""
        name = b"/".join(step.names)
        found = step.found
        if step.fd >= 0:
            self._write(_head(name + b"/", found, tarfile.DIRTYPE))
        elif stat.S_ISLNK(found.st_mode):
            target = os.readlink(step.names[-1], dir_fd=step.directory)
            self._write(_head(name, found, tarfile.SYMTYPE, link=target))
        else:
            fd = os.open(step.names[-1], _READ, dir_fd=step.directory)
            try:
                yield from self._add_file(name, fd)
            finally:
                os.close(fd)

    def _add_file(self, name: bytes, fd: int) -> Generator[bytes | None, None, None]:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return  # swapped meanwhile
        key = (found.st_dev, found.st_ino)
        if found.st_nlink > 1:
            if key in self._linked:
                self._write(_head(name, found, tarfile.LNKTYPE, link=self._linked[key]))
                return
            if len(self._linked) < _LINKS_MAX:
                self._linked[key] = name
        self._write(_head(name, found, tarfile.REGTYPE, size=found.st_size))
        position = 0
        while position < found.st_size:
            data = os.pread(fd, min(_PIECE, found.st_size - position), position)
            if not data:
                raise Problem("conflict", f"{shown(name)} became shorter while it was packed")
            position += len(data)
            self._write(data)
            yield self.piece()
        self._write(bytes(padding(found.st_size)))

    def _write(self, data: bytes) -> None:
        self._size += len(data)
        self._out += data if self._deflate is None else self._deflate.compress(data)


def _head(name: bytes, found: os.stat_result, kind: bytes, *, size: int = 0, link: bytes = b"") -> bytes:
    """A ustar header; what does not fit into one stands in a pax header before it, as do exact times."""
    seconds, nanoseconds = divmod(found.st_mtime_ns, 1_000_000_000)
    records = {}
    if len(name) > _NAME_BYTES or not name.isascii():
        records[b"path"] = name
    if len(link) > _NAME_BYTES or not link.isascii():
        records[b"linkpath"] = link
    if size > _SIZE_MAX:
        records[b"size"] = b"%d" % size
    for key, number in ((b"uid", found.st_uid), (b"gid", found.st_gid)):
        if number > _ID_MAX:
            records[key] = b"%d" % number
    if nanoseconds or not 0 <= seconds <= _TIME_MAX:
        records[b"mtime"] = _decimal(found.st_mtime_ns)
    plain = tarfile.TarInfo(_cut(name))
    plain.type = kind
    plain.mode = stat.S_IMODE(found.st_mode)
    plain.uid, plain.gid = min(found.st_uid, _ID_MAX), min(found.st_gid, _ID_MAX)
    plain.size = size if size <= _SIZE_MAX else 0
    plain.mtime = min(max(0, seconds), _TIME_MAX)
    plain.linkname = _cut(link)
    return _pax_header(records) + plain.tobuf(tarfile.USTAR_FORMAT, "utf-8", "surrogateescape")


def _cut(name: bytes) -> str:
    """What an old reader makes of a name that is in a pax header."""
    shorter = name if len(name) <= _NAME_BYTES else name[: _NAME_BYTES - 1]  # a directory gets a slash
    return shorter.decode("ascii", "replace").replace("\ufffd", "_")


def _decimal(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    return sign + b"%d.%09d" % divmod(abs(nanoseconds), 1_000_000_000)


def _pax_header(records: dict[bytes, bytes]) -> bytes:
    if not records:
        return b""
    if any(_is_no_text(value) for value in records.values()):
        records = {b"hdrcharset": b"BINARY", **records}
    data = b"".join(_record(key, value) for key, value in records.items())
    head = tarfile.TarInfo("././@PaxHeader")
    head.type, head.size = tarfile.XHDTYPE, len(data)
    return head.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict") + data + bytes(padding(len(data)))


def _is_no_text(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def _record(key: bytes, value: bytes) -> bytes:
    """Its length counts itself, too."""
    rest = len(b" " + key + b"=" + value + b"\n")
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %b=%b\n" % (length, key, value)
