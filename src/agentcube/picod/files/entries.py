"""One file as callers see it, and errors of the file system as problems."""

from __future__ import annotations

import calendar
import errno
import os
import re
import stat
from dataclasses import dataclass
from typing import Any, NoReturn

from agentcube.picod.messages import rfc3339
from agentcube.picod.problems import Problem

HIDDEN = b".agentcube-part-"
"""How names of what is being written begin. Not listed, not packed, not watched."""

REPLACES = b"r"
"""At the end of such a name: what it holds is about to replace a file (`watch` tells it from a new one)."""

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_RFC3339 = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_WRONG = {
    # What a caller asked for and cannot be: its reason says enough.
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EXDEV,
    errno.EINVAL,
    errno.ENXIO,
    errno.EMLINK,
}


@dataclass(frozen=True)
class Entry:
    """A file: `path` is relative to the workspace (in plain listings to the directory listed)."""

    path: bytes
    found: os.stat_result
    target: bytes | None = None  # of a symbolic link

    @property
    def modified(self) -> float:
        """Seconds since 1970."""
        return self.found.st_mtime_ns / 1e9

    def members(self) -> dict[str, Any]:
        """Its JSON object."""
        mode = self.found.st_mode
        members: dict[str, Any] = {
            "path": text(self.path),
            "name": text(self.path.rpartition(b"/")[2]),
            "type": _KINDS.get(stat.S_IFMT(mode), "device"),
            "size": self.found.st_size,
            "mode": stat.filemode(mode),
            "permissions": f"{stat.S_IMODE(mode):04o}",
            "uid": self.found.st_uid,
            "gid": self.found.st_gid,
            "modified": rfc3339(self.modified),
            "is_dir": stat.S_ISDIR(mode),
        }
        if self.target is not None:
            members["target"] = text(self.target)
        return members


def entry_at(directory: int, names: tuple[bytes, ...]) -> Entry:
    """The last of `names`, which is in `directory`; a link itself. Raises OSError."""
    found = os.stat(names[-1], dir_fd=directory, follow_symlinks=False)
    target = None
    if stat.S_ISLNK(found.st_mode):
        try:
            target = os.readlink(names[-1], dir_fd=directory)
        except OSError as exc:
            if exc.errno != errno.EINVAL:  # replaced meanwhile by what is no link
                raise
    return Entry(b"/".join(names), found, target)


def text(path: bytes) -> str:
    """As it stands in JSON: bytes that are no UTF-8 become surrogates, and come back as they were."""
    return path.decode("utf-8", "surrogateescape")


def shown(path: bytes) -> str:
    """For people."""
    return repr(path.decode("utf-8", "replace")[:256])


def parse_mode(given: str) -> int:
    """Permission bits from octal text such as "0644". Problem when it is none."""
    if (
        not given.isascii()
        or not given.isdigit()
        or len(given) > 5
        or set(given) & {"8", "9"}
        or int(given, 8) > 0o777
    ):
        raise Problem("invalid", f'mode {given[:16]!r} must be octal permissions such as "0644"')
    return int(given, 8)


def parse_time(given: str) -> int:
    """Nanoseconds since 1970 from an RFC 3339 text. Problem when it is none."""
    match = _RFC3339.fullmatch(given)
    if match is not None:
        numbers = [int(match[i]) for i in range(1, 7)]
        year, month, day, hour, minute, second = numbers
        zone = 0
        if match[8]:
            zone = (int(match[9]) * 60 + int(match[10])) * (60 if match[8] == "+" else -60)
        last = calendar.monthrange(year, month)[1] if year and 1 <= month <= 12 else 0
        if 1 <= day <= last and hour < 24 and minute < 60 and second <= 60:
            seconds = calendar.timegm((year, month, day, hour, minute, second)) - zone
            return seconds * 1_000_000_000 + int((match[7] or "0").ljust(9, "0"))
    raise Problem("invalid", f'{given[:40]!r} must be a time such as "2026-01-31T12:00:00Z"')


def refuse(exc: OSError, path: bytes) -> NoReturn:
    """The problem that an error of the file system is to the caller."""
    name, number = shown(path), exc.errno
    reason = os.strerror(number or 0)
    if number in (errno.ENOSPC, errno.EDQUOT):
        raise Problem(
            "workspace_full", "no space left in the workspace: delete files, or ask for a larger one"
        ) from exc
    if number == errno.ENOENT:
        raise Problem("file_not_found", f"{name} does not exist in the workspace") from exc
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise Problem("forbidden", f"{name}: {reason}") from exc
    if number == errno.EFBIG:
        raise Problem("body_too_large", f"{name}: {reason}") from exc
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise Problem("unavailable", reason) from exc
    if number == errno.EEXIST:
        raise Problem("file_exists", f"{name} is there already") from exc
    if number == errno.ENOTEMPTY:
        raise Problem("not_empty", f"{name} is a directory with something in it") from exc
    if number in (errno.EBUSY, errno.EAGAIN, errno.ETXTBSY, errno.ESTALE, errno.ECANCELED):
        raise Problem("conflict", f"{name} is in use: {reason}") from exc
    if number in _WRONG:
        raise Problem("invalid", f"{name}: {reason}") from exc
    raise exc
