"""Loop devices: files as block devices (loop(4)). It knows nothing of file systems."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CTL_GET_FREE = 0x4C82
_CONFIGURE = 0x4C0A  # Linux 5.8
_AUTOCLEAR, _DIRECT_IO = 4, 16
_MAJOR = 7
_BLOCK = 4096  # direct I/O needs the backing file system's block size, which is this nearly everywhere
_TRIES = 64

# struct loop_config: fd, block_size, struct loop_info64, 8 reserved words.
_CONFIG = struct.Struct("=II 5Q 4I 64s 64s 32s 2Q 8Q")


@contextmanager
def attached(image: Path) -> Iterator[str]:
    """The path of a loop device over `image`, for as long as the block runs.

    Whoever mounted it inside the block keeps it; the kernel frees it with its last user, also when
    this process is killed. Direct I/O, so that pages are cached once; the kernel goes through the
    cache where the backing file system cannot.

    Raises:
        OSError: no loop devices here, or none is free.
    """
    with open(image, "r+b") as backing:
        device, path = _take(backing.fileno(), str(image))
    try:
        yield path
    finally:
        os.close(device)
        if path.startswith(tempfile.gettempdir()):
            os.unlink(path)


def _take(backing: int, name: str) -> tuple[int, str]:
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, _CTL_GET_FREE)
            device, path = _open(number)
            try:
                fcntl.ioctl(device, _CONFIGURE, _config(backing, name))
                return device, path
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY:  # somebody else took it first
                    raise
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, "no free loop device")


def _open(number: int) -> tuple[int, str]:
    path = f"/dev/loop{number}"
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), path
    except FileNotFoundError:
        # A container's /dev does not learn of new devices: a node of our own does as well.
        path = tempfile.mktemp(prefix=f"agentcube-loop{number}-")  # noqa: S306  # mknod fails if it exists
        os.mknod(path, 0o600 | 0o060000, os.makedev(_MAJOR, number))
        return os.open(path, os.O_RDWR | os.O_CLOEXEC), path


def _config(backing: int, name: str) -> bytes:
    label = os.fsencode(name)[-63:]
    flags = _AUTOCLEAR | _DIRECT_IO
    return _CONFIG.pack(
        backing, _BLOCK, 0, 0, 0, 0, 0, 0, 0, 0, flags, label, b"", b"", 0, 0, *([0] * 8)
    )  # fmt: skip
