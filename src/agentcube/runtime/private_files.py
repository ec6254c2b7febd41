"""Small secret files: made once, whole or not at all, readable by their owner only.

Knows nothing of what the bytes mean.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path

from agentcube.errors import Invalid

_BYTES_MAX = 64 * 1024


def read_or_make(path: Path, make: Callable[[], bytes], *, what: str) -> bytes:
    """The bytes of the secret file `path`, made by `make` first when there is none.

    Two processes racing get the same bytes: the first link into place wins. The directory is made
    with mode 0700, the file with 0600. `what` names the secret in errors.

    Raises:
        Invalid: the directory or file cannot be used, belongs to someone else, or others may read it.
    """
    try:
        _private_dir(path.parent, what)
        found = _read(path, what)
        if found is not None:
            return found
        _publish(path, make())
        found = _read(path, what)
    except OSError as exc:
        raise Invalid(f"cannot use the {what} at {path}: {exc.strerror}") from exc
    if found is None:
        raise Invalid(f"the {what} at {path} was removed while it was being made; start again")
    return found


def _private_dir(directory: Path, what: str) -> None:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = directory.stat()
    if info.st_uid != os.geteuid():
        raise Invalid(f"{directory}, which holds the {what}, belongs to uid {info.st_uid}, not to this user")
    if info.st_mode & 0o077:
        raise Invalid(
            f"{directory}, which holds the {what}, is open to others "
            f"(mode {stat.S_IMODE(info.st_mode):04o}); run: chmod 700 {directory}"
        )


def _read(path: Path, what: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise Invalid(f"the {what} at {path} is not a regular file")
        if info.st_uid != os.geteuid():
            raise Invalid(f"the {what} at {path} belongs to uid {info.st_uid}, not to this user")
        if info.st_mode & 0o077:
            raise Invalid(
                f"the {what} at {path} is open to others (mode {stat.S_IMODE(info.st_mode):04o}); "
                f"run: chmod 600 {path}"
            )
        return file.read(_BYTES_MAX)


def _publish(path: Path, content: bytes) -> None:
    """Put the bytes at `path` unless something is there; never a torn file, also after a power cut."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        _sync_dir(path.parent)
    finally:
        draft.unlink(missing_ok=True)


def _sync_dir(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
