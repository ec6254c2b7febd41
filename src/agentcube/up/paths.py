"""Where one machine's AgentCube keeps things: the data directory, the runtime directory, the user's config.

The data directory is versioned and locked by the one server that uses it. The runtime directory is
short, because socket paths end at 108 bytes, and holds nothing that outlives a clean stop.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import platformdirs

from agentcube.errors import Invalid

DATA_VERSION = 1
"""Layout of the data directory. A newer one is refused, an older one is upgraded where this grows."""

_APP = "agentcube"


@dataclass(frozen=True, slots=True)
class Running:
    """The server that holds a data directory."""

    pid: int
    url: str


class DataDir:
    """A locked data directory: only one server may have it open.

    Raises Invalid, naming the directory and the remedy, when it cannot be made or written, when
    another server has it, or when a newer AgentCube wrote it.
    """

    def __init__(self, path: Path, lock_fd: int) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path | None = None) -> Self:
        """Make the directory if needed (mode 0700), check its version and lock it."""
        path = (path or default_data_dir()).expanduser().absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_ours(path)
            lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            reason = exc.strerror or "not accessible"
            raise Invalid(
                f"data directory {path}: {reason.lower()}; make it writable or choose another with --data-dir"
            ) from exc
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(lock_fd)
            other = running(path)
            who = f"pid {other.pid}, {other.url}" if other else "another process"
            raise Invalid(
                f"data directory {path} is in use by {who}; stop it with `agentcube down --data-dir {path}` "
                "or choose another with --data-dir"
            ) from exc
        opened = cls(path, lock_fd)
        try:
            opened._check_version()
        except BaseException:
            opened.close()
            raise
        return opened

    def _check_version(self) -> None:
        file = self.path / "version"
        try:
            text = file.read_text().strip()
        except FileNotFoundError:
            file.write_text(f"{DATA_VERSION}\n")
            return
        except OSError as exc:
            raise Invalid(f"cannot read {file}: {exc.strerror}") from exc
        if not text.isdigit():
            raise Invalid(
                f"{file} is damaged (it should hold a number); restore it or use another --data-dir"
            )
        if int(text) > DATA_VERSION:
            raise Invalid(
                f"data directory {self.path} has version {text}, this agentcube knows up to {DATA_VERSION}; "
                "upgrade agentcube or use another --data-dir"
            )

    def announce(self, url: str) -> None:
        """Say in the lock file who serves from here, for `down` and for error messages."""
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)

    def close(self) -> None:
        """Release the lock."""
        os.ftruncate(self._lock_fd, 0)
        os.close(self._lock_fd)


def _check_ours(path: Path) -> None:
    """Whoever may write here decides what runs in sandboxes, and what we kill and delete. Raises Invalid."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise Invalid(f"data directory {path} belongs to uid {found.st_uid}; choose one of your own")
    if found.st_mode & 0o022:
        raise Invalid(f"data directory {path} can be written by others: chmod go-w {path}, or choose another")


def running(path: Path) -> Running | None:
    """Who serves from the data directory `path`; None when its lock is free or it does not exist."""
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None  # nobody holds it: what it says is left over from a crash
    except OSError:
        try:
            said = json.loads(os.pread(fd, 4096, 0))
            return Running(int(said["pid"]), str(said["url"]))
        except (ValueError, KeyError, TypeError):
            return None
    finally:
        os.close(fd)


def default_data_dir() -> Path:
    """The data directory when none is given: the platform's place for user data."""
    return Path(platformdirs.user_data_dir(_APP))


def env_cache_dir() -> Path:
    """Where Python environments for sandboxes are built, shared by all data directories of this user."""
    return Path(platformdirs.user_cache_dir(_APP)) / "envs"


def runtime_dir(data_dir: Path) -> Path:
    """Make and check the runtime directory of `data_dir`: ours alone, mode 0700, a short path."""
    name = instance_name(data_dir)
    if os.geteuid() == 0 and os.access("/run", os.W_OK):  # a namespace's root may not write there
        parent = Path("/run/agentcube")
    elif os.environ.get("XDG_RUNTIME_DIR"):
        parent = Path(os.environ["XDG_RUNTIME_DIR"]) / _APP
    else:
        parent = Path(f"/tmp/agentcube-{os.geteuid()}")  # noqa: S108  ownership and mode are checked below
    for directory in (parent, parent / name):
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            found = directory.lstat()
        except OSError as exc:
            raise Invalid(
                f"runtime directory {directory}: {(exc.strerror or 'not accessible').lower()}"
            ) from exc
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            # In /tmp anybody may have made it first, and nobody else can remove it then.
            raise Invalid(
                f"runtime directory {directory} is not ours alone; remove it, or set XDG_RUNTIME_DIR to a "
                "directory of your own, and start again"
            )
    return parent / name


def remove_runtime_dir(path: Path) -> None:
    """Remove an emptied runtime directory and its parent when it was the last; keep what is not empty."""
    for directory in (path, path.parent):
        try:
            directory.rmdir()
        except OSError:
            return


def instance_name(data_dir: Path) -> str:
    """A short name that is the same for the same data directory: names cgroups and sockets."""
    return hashlib.sha256(os.fsencode(data_dir.absolute())).hexdigest()[:8]
