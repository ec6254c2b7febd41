"""Root file systems from tar archives, unpacked once and shared by every sandbox that uses them.

An archive is somebody else's bytes: no entry may land outside, nothing but files, directories and
links is made, and its size is bounded before it is believed.
"""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import shutil
import stat
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from agentcube.drivers.local.inside import kernel
from agentcube.errors import Invalid

BYTES_MAX = 20 << 30
"""Unpacked size: ten times a large image with a scientific Python."""

ENTRIES_MAX = 1_000_000
"""Inodes: a full Debian desktop has about 300,000."""

# ValueError and OverflowError: numbers in headers that no file system takes.
_DAMAGED: tuple[type[Exception], ...] = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    OverflowError,
)
if sys.version_info >= (3, 14):
    from compression.zstd import ZstdError

    _DAMAGED = (*_DAMAGED, ZstdError)


def unpacked(
    archive: Path,
    root: Path,
    *,
    within: Sequence[str] | None = None,
    bytes_max: int = BYTES_MAX,
    entries_max: int = ENTRIES_MAX,
) -> Path:
    """The directory below `root` with the contents of `archive`, unpacked now unless it is there.

    Its name depends on the archive's path, size and time of change: a changed archive is another
    image. Unpacking is atomic; two processes do it once. With `within`, the archive has to lie below
    one of these directories (real paths).

    Raises:
        Invalid: the archive is missing, damaged, too large, elsewhere, or tries to leave its directory.
    """
    with _opened_archive(archive, within) as file:
        state = os.fstat(file.fileno())
        facts = f"{archive}\0{state.st_size}\0{state.st_mtime_ns}"
        final = root / hashlib.sha256(facts.encode()).hexdigest()[:16]
        if final.is_dir():
            return final
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f".{final.name}.lock"):
            if final.is_dir():
                return final
            for left in root.glob(f".{final.name}-*"):
                remove(left)
            temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=root))
            try:
                _unpack(archive, file, temporary / "root", bytes_max, entries_max)
                os.rename(temporary / "root", final)
            finally:
                remove(temporary)
    return final


def _opened_archive(archive: Path, within: Sequence[str] | None) -> BinaryIO:
    """The archive, judged by what was opened: its path may lead elsewhere a moment later."""
    try:
        fd = os.open(archive, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # which does not wait for a pipe
    except OSError as exc:
        raise Invalid(f"image 'tar:{archive}': {exc.strerror}") from exc
    problem = ""
    if within is not None and not kernel.is_within(fd, within):
        problem = "it leads out of the directories that templates may use"
    elif not stat.S_ISREG(os.fstat(fd).st_mode):
        problem = f"not a file; for a directory write 'dir:{archive}'"
    if problem:
        os.close(fd)
        raise Invalid(f"image 'tar:{archive}': {problem}")
    return os.fdopen(fd, "rb")


def _unpack(archive: Path, file: BinaryIO, to: Path, bytes_max: int, entries_max: int) -> None:
    to.mkdir()
    to.chmod(0o755)
    root = os.open(to, os.O_PATH | os.O_CLOEXEC)
    try:
        with tarfile.open(fileobj=file, mode="r:*") as tar:
            for member in _bounded(tar, archive, bytes_max, entries_max):
                _extract(tar, member, root)
    except _Refused as exc:
        raise Invalid(f"image 'tar:{archive}': refused: {exc}") from exc
    except OSError as exc:
        if exc.errno is None:  # gzip and bz2 say so of damaged data
            raise _damaged(archive, exc) from exc
        raise Invalid(f"image 'tar:{archive}': cannot unpack it: {exc}") from exc
    except _DAMAGED as exc:
        raise _damaged(archive, exc) from exc
    finally:
        os.close(root)
    if not any(to.iterdir()):
        raise Invalid(f"image 'tar:{archive}': the archive is empty")


def _damaged(archive: Path, why: Exception) -> Invalid:
    first = str(why).partition("\n")[0].removesuffix(":")  # the others tell how each format was tried
    return Invalid(
        f"image 'tar:{archive}': damaged, or not a tar archive this Python can read "
        f"(plain, gzip, bzip2, xz; zstd from Python 3.14): {first}"
    )


class _Refused(Exception):
    """An entry that no honest archive has."""


def _bounded(
    tar: tarfile.TarFile, archive: Path, bytes_max: int, entries_max: int
) -> Iterator[tarfile.TarInfo]:
    """Members worth extracting, until the archive proves too large."""
    total = 0
    for count, member in enumerate(tar, start=1):
        if member.size < 0:
            raise _Refused(f"{member.name!r} has a size below zero")
        total += member.size
        if count > entries_max or total > bytes_max:
            raise Invalid(f"image 'tar:{archive}': larger than {bytes_max} bytes or {entries_max} entries")
        if member.isreg() or member.isdir() or member.islnk() or member.issym():
            yield member  # device nodes and pipes are left out: sandboxes get a /dev of their own


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, root: int) -> None:
    """Make one entry. The kernel resolves every path inside `root`, links of the archive included.

    Everybody may read (sandboxes have user ids of their own), nobody else may write, nobody is setuid.
    """
    folder, name = _split(member.name)
    if not name:
        return
    parent = _opened(root, folder, member)
    try:
        if member.isdir():
            _make_folder(name, parent)
            return
        try:
            os.unlink(name, dir_fd=parent)  # the last entry of a name counts
        except FileNotFoundError:
            pass
        if member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            _link(root, member, name, parent)
        else:
            _write(tar, member, name, parent)
    finally:
        os.close(parent)


def _split(path: str) -> tuple[list[str], str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _Refused(f"{path!r} leaves the archive's directory")
    return parts[:-1], parts[-1] if parts else ""


def _opened(root: int, folder: list[str], member: tarfile.TarInfo) -> int:
    """The directory that an entry goes into, made where no earlier entry made it."""
    found, known = kernel.open_deepest(root, folder, f"find {member.name!r}")
    for name in folder[known:]:
        try:
            os.mkdir(name, dir_fd=found)
            _make_folder(name, found)
            deeper = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
        except FileExistsError as exc:
            raise _Refused(f"{member.name!r} leads through a link to nowhere") from exc
        finally:
            os.close(found)
        found = deeper
    return found


def _make_folder(name: str, parent: int) -> None:
    try:
        os.mkdir(name, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            return  # a link to a directory stays one
    os.chmod(name, 0o755, dir_fd=parent)  # noqa: S103  # sandboxes are other users


def _link(root: int, member: tarfile.TarInfo, name: str, parent: int) -> None:
    folder, target = _split(member.linkname)
    source = _opened(root, folder, member)
    try:
        os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
    finally:
        os.close(source)


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, name: str, parent: int) -> None:
    content = tar.extractfile(member)
    assert content is not None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with content, open(os.open(name, flags, 0o600, dir_fd=parent), "wb") as file:
        shutil.copyfileobj(content, file, 1 << 20)
        file.flush()
        os.fchmod(file.fileno(), member.mode & 0o755 | 0o644)
        os.utime(file.fileno(), (member.mtime, member.mtime))  # Python's bytecode depends on it


def remove(dir: Path) -> None:
    """Delete an unpacked tree, read-only directories included."""
    if dir.is_dir() and not dir.is_symlink():
        for folder, _, _ in os.walk(dir):
            os.chmod(folder, 0o700)
        shutil.rmtree(dir, ignore_errors=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
