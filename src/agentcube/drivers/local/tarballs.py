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
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentcube.errors import Invalid

BYTES_MAX = 20 << 30
"""Unpacked size: ten times a large image with a scientific Python."""

ENTRIES_MAX = 1_000_000
"""Inodes: a full Debian desktop has about 300,000."""

_DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError)


def unpacked(
    archive: Path, root: Path, *, bytes_max: int = BYTES_MAX, entries_max: int = ENTRIES_MAX
) -> Path:
    """The directory below `root` with the contents of `archive`, unpacked now unless it is there.

    Its name depends on the archive's path, size and time of change: a changed archive is another
    image. Unpacking is atomic; two processes do it once.

    Raises:
        Invalid: the archive is missing, damaged, too large, or tries to leave its directory.
    """
    try:
        state = archive.stat()
        with archive.open("rb"):
            pass
    except OSError as exc:
        raise Invalid(f"image 'tar:{archive}': {exc.strerror}") from exc
    if not archive.is_file():
        raise Invalid(f"image 'tar:{archive}': not a file; for a directory write 'dir:{archive}'")
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
            _unpack(archive, temporary / "root", bytes_max, entries_max)
            os.rename(temporary / "root", final)
        finally:
            remove(temporary)
    return final


def _unpack(archive: Path, to: Path, bytes_max: int, entries_max: int) -> None:
    to.mkdir()
    to.chmod(0o755)
    try:
        with tarfile.open(archive, "r:*") as tar:
            for member in _bounded(tar, archive, bytes_max, entries_max):
                _extract(tar, member, to)
    except tarfile.FilterError as exc:
        raise Invalid(f"image 'tar:{archive}': refused: {exc}") from exc
    except _DAMAGED as exc:
        if isinstance(exc, OSError) and not isinstance(exc, (tarfile.TarError, EOFError)) and exc.errno:
            raise Invalid(f"image 'tar:{archive}': cannot unpack it: {exc.strerror}: {exc.filename}") from exc
        raise Invalid(
            f"image 'tar:{archive}': damaged, or not a tar archive this Python can read "
            f"(plain, gzip, bzip2, xz; zstd from Python 3.14): {exc}"
        ) from exc
    if not any(to.iterdir()):
        raise Invalid(f"image 'tar:{archive}': the archive is empty")


def _bounded(
    tar: tarfile.TarFile, archive: Path, bytes_max: int, entries_max: int
) -> Iterator[tarfile.TarInfo]:
    """Members worth extracting, until the archive proves too large."""
    total = 0
    for count, member in enumerate(tar, start=1):
        total += member.size
        if count > entries_max or total > bytes_max:
            raise Invalid(f"image 'tar:{archive}': larger than {bytes_max} bytes or {entries_max} entries")
        if member.isfile() or member.isdir() or member.islnk() or member.issym():
            yield member  # device nodes and pipes are left out: sandboxes get a /dev of their own


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, to: Path) -> None:
    if member.issym():
        _link(member, to)
        return
    safe = tarfile.tar_filter(member, str(to))
    # Everybody may read (sandboxes have user ids of their own), nobody else writes, no setuid.
    mode = (safe.mode or 0) & 0o755 | (0o755 if member.isdir() else 0o644)
    tar.extract(safe.replace(mode=mode, uid=None, gid=None, uname=None, gname=None, deep=False), to)  # type: ignore[arg-type]  # typeshed: None means "leave"


def _link(member: tarfile.TarInfo, to: Path) -> None:
    """A symbolic link as the archive has it: absolute ones are the root file system's own.

    Entries that lead through it to somewhere outside are refused by tarfile's filter, which resolves
    the links made so far.
    """
    safe = tarfile.tar_filter(member.replace(linkname="x", deep=False), str(to))
    path = to / safe.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path) and not (path.is_dir() and not path.is_symlink()):
        path.unlink()
    path.symlink_to(member.linkname)


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
