"""A tar stream that comes out of a sandbox, unpacked into a local directory. What is in it is not trusted.

Nothing is written outside the directory, nor through a link, whether it stood there or came with the stream. What is
neither a file, a directory nor a link that stays inside is left out. No more than a header is held in memory.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Self

from agentcube.sdk._core.errors import TransferIncomplete, UnexpectedAnswer
from agentcube.sdk._core.localfile import PartFile
from agentcube.sdk._core.sources import Progress

BLOCK = tarfile.BLOCKSIZE
EXTENDED_BYTES_MAX = 1024 * 1024  # of a PAX or GNU header: names and times
MEMBERS_MAX = 1_000_000
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_GNU = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}

_Bytes = Generator[None, bytes, bytes]
_Step = Generator[None, bytes, None]


class TarTarget:
    """Unpacks what `feed` is given, as a block; links come when it ends well, so that nothing is written through one.

    Files appear whole or not at all, and take the place of what had their name; directories are merged. `left_out` are
    the names of what was not unpacked.
    """

    def __init__(self, root: str | os.PathLike[str], what: str, progress: Progress | None = None) -> None:
        self.done = 0
        self.left_out: list[str] = []
        self._root = Path(root)
        self._what = what
        self._progress = progress
        self._buffer = bytearray()
        self.files = 0
        self._links: list[tuple[Path, str, str]] = []
        self._folders: list[tuple[Path, tarfile.TarInfo]] = []
        self._ended = False
        self._reader = self._members()

    def __enter__(self) -> Self:
        self._root.mkdir(parents=True, exist_ok=True)
        next(self._reader)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        self._reader.close()  # a file that was begun goes
        if kind is not None:
            return
        if not self._ended:
            raise TransferIncomplete(f"{self._what}: the stream ended in the middle")
        for path, target, name in self._links:
            self._link(path, target, name)
        for path, member in reversed(self._folders):
            _dress(path, member)

    def feed(self, data: bytes) -> None:
        """The next bytes of the stream. Raises UnexpectedAnswer for what is damaged or leads out, and OSError."""
        if self._ended:
            return  # padding
        try:
            self._reader.send(data)
        except StopIteration:
            self._ended = True

    def _exactly(self, count: int) -> _Bytes:
        while len(self._buffer) < count:
            self._buffer += yield
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _some(self, most: int) -> _Bytes:
        while not self._buffer:
            self._buffer += yield
        return (yield from self._exactly(min(most, len(self._buffer))))

    def _members(self) -> _Step:
        said: dict[str, str] = {}  # by extended headers, of the member that follows
        for _ in range(MEMBERS_MAX):
            head = yield from self._exactly(BLOCK)
            if not any(head):
                return
            member = self._parsed(head)
            if member.type in _PAX or member.type in _GNU:
                said |= yield from self._extended(member)
                continue
            self._apply(member, said)
            said = {}
            yield from self._member(member)
        raise UnexpectedAnswer(f"{self._what}: more than {MEMBERS_MAX} entries")

    def _parsed(self, head: bytes) -> tarfile.TarInfo:
        try:
            member = tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as exc:
            raise UnexpectedAnswer(f"{self._what}: the stream is no tar archive: {exc}") from None
        if member.size < 0:
            raise UnexpectedAnswer(f"{self._what}: {member.name!r} has less than no bytes")
        return member

    def _extended(self, member: tarfile.TarInfo) -> Generator[None, bytes, dict[str, str]]:
        if member.size > EXTENDED_BYTES_MAX:
            raise UnexpectedAnswer(f"{self._what}: a header of {member.size} bytes")
        content = (yield from self._exactly(member.size + _padding(member.size)))[: member.size]
        if member.type == tarfile.XGLTYPE:
            return {}  # of all members: nothing that is used here
        if member.type in _GNU:
            return {_GNU[member.type]: content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
        return self._records(content)

    def _records(self, content: bytes) -> dict[str, str]:
        """Records of a PAX header: length, space, key=value, newline; the length is that of the whole record."""
        found: dict[str, str] = {}
        while content:
            number, _, _ = content.partition(b" ")
            length = int(number) if number.isdigit() and len(number) < 8 else 0
            key, equals, value = content[len(number) + 1 : max(0, length - 1)].partition(b"=")
            if not equals or content[length - 1 : length] != b"\n":
                raise UnexpectedAnswer(f"{self._what}: a damaged PAX header")
            found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
            content = content[length:]
        return found

    def _apply(self, member: tarfile.TarInfo, said: dict[str, str]) -> None:
        member.name = said.get("path", member.name)
        member.linkname = said.get("linkpath", member.linkname)
        try:
            member.size = int(said.get("size", member.size))
            member.mtime = float(said.get("mtime", member.mtime))
        except ValueError:
            member.size = -1
        if member.size < 0:
            raise UnexpectedAnswer(f"{self._what}: {member.name!r} has no proper size or time")

    def _member(self, member: tarfile.TarInfo) -> _Step:
        has_content = member.type in _FILES or member.type not in tarfile.SUPPORTED_TYPES
        parts = self._parts(member.name)
        path = self._root.joinpath(*parts)
        if not parts:
            pass  # the directory itself
        elif os.name == "nt" and any(character in member.name for character in '\\:*?"<>|'):
            self.left_out.append(member.name)
        else:
            self._make_way(parts)
            if member.type in _FILES:
                yield from self._file(path, member)
                return
            self._nameless(path, parts, member)
        if has_content:
            yield from self._skip(member.size)

    def _nameless(self, path: Path, parts: tuple[str, ...], member: tarfile.TarInfo) -> None:
        """What has no content of its own."""
        if member.type == tarfile.DIRTYPE:
            if path.is_symlink():
                raise UnexpectedAnswer(f"{self._what}: {path} is a link, and would be written through")
            path.mkdir(exist_ok=True)
            self._folders.append((path, member))
        elif member.type == tarfile.SYMTYPE and _stays(len(parts) - 1, member.linkname):
            self._links.append((path, member.linkname, member.name))
        elif member.type == tarfile.LNKTYPE:
            self._same(path, member)
        else:
            self.left_out.append(member.name)

    def _parts(self, name: str) -> tuple[str, ...]:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise UnexpectedAnswer(f"{self._what}: the stream has a name that leads out: {name!r}")
        return parts

    def _make_way(self, parts: tuple[str, ...]) -> None:
        path = self._root
        for name in parts[:-1]:
            path /= name
            if path.is_symlink():
                raise UnexpectedAnswer(f"{self._what}: {path} is a link, and would be written through")
            path.mkdir(exist_ok=True)

    def _file(self, path: Path, member: tarfile.TarInfo) -> _Step:
        if path.is_symlink():
            path.unlink()  # it is replaced, not what it leads to
        with PartFile(path) as part:
            left = member.size
            while left:
                piece = yield from self._some(left)
                left -= len(piece)
                part.write(piece)
                self.done += len(piece)
                if self._progress is not None:
                    self._progress(self.done, None)
        _dress(path, member)
        self.files += 1
        yield from self._exactly(_padding(member.size))

    def _same(self, path: Path, member: tarfile.TarInfo) -> None:
        """A hard link: the same content as an earlier member."""
        parts = self._parts(member.linkname)
        earlier = self._root.joinpath(*parts)
        self._make_way(parts)
        if earlier.is_symlink() or not earlier.is_file():
            self.left_out.append(member.name)
            return
        if path.is_symlink():
            path.unlink()
        with earlier.open("rb") as source, PartFile(path) as part:
            shutil.copyfileobj(source, part)
        _dress(path, member)

    def _skip(self, size: int) -> _Step:
        left = size + _padding(size)
        while left:
            left -= len((yield from self._some(left)))

    def _link(self, path: Path, target: str, name: str) -> None:
        if path.is_dir() and not path.is_symlink():
            self.left_out.append(name)
            return
        path.unlink(missing_ok=True)
        try:
            path.symlink_to(target)
        except OSError:
            self.left_out.append(name)  # a file system, or a Windows user, without links


def _stays(depth: int, target: str) -> bool:
    """Whether a link in a directory at this depth leads to a place in the tree.

    Up is allowed only at its beginning: after another name, which may itself be a link, ".." leads nobody knows where.
    """
    if target.startswith("/") or "\0" in target or (os.name == "nt" and ("\\" in target or ":" in target)):
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return up <= depth and ".." not in parts[up:]


def _padding(size: int) -> int:
    return -size % BLOCK


def _dress(path: Path, member: tarfile.TarInfo) -> None:
    path.chmod(member.mode & 0o777)
    try:
        os.utime(path, (member.mtime, member.mtime))
    except (OverflowError, ValueError, OSError):
        pass  # a time that this file system does not have
