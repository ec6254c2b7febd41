"""The few kernel calls that Python's `os` does not wrap, each checked. It knows nothing of PicoD.

System call numbers above 423 are the same on every architecture (x86-64 and arm64 included).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_FD_MAX = 0xFFFF_FFFF
_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    """Set one process attribute. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise _failed(f"prctl({option})")


def set_name(name: bytes) -> None:
    """Name the calling thread (15 bytes) as `ps` shows it. Cosmetic: failure is ignored."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name[:15]), 0, 0, 0)


def set_fs_ids(uid: int, gid: int) -> None:
    """Do the calling thread's file work as `uid`/`gid`; threads it starts inherit that. Raises OSError.

    The calls report no error (setfsuid(2)): asking again with an impossible id reads the result back.
    """
    _libc.setfsgid(ctypes.c_uint(gid))
    _libc.setfsuid(ctypes.c_uint(uid))
    if _libc.setfsgid(ctypes.c_int(-1)) != gid or _libc.setfsuid(ctypes.c_int(-1)) != uid:
        raise PermissionError(errno.EPERM, "setfsuid")


def close_all_but(kept: Iterable[int]) -> None:
    """Close every descriptor but 0, 1, 2 and `kept`."""
    lowest = 3
    for fd in sorted(kept):
        if fd > lowest:
            _close_range(lowest, fd - 1)
        lowest = max(lowest, fd + 1)
    _close_range(lowest, _FD_MAX)


def _close_range(first: int, last: int) -> None:
    if _syscall(_NR_CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), 0) != 0:
        for name in os.listdir("/proc/self/fd"):  # kernels before 5.9, or a filter that says ENOSYS
            if first <= int(name) <= last:
                try:
                    os.close(int(name))
                except OSError:
                    pass  # the listing's own descriptor


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open a path under a rule of resolution, close-on-exec. Raises OSError; ENOSYS on old kernels."""
    how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        fd: int = _syscall(
            _NR_OPENAT2, ctypes.c_int(directory), ctypes.c_char_p(path), how, ctypes.c_size_t(len(how))
        )
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EINTR:
            raise _failed("openat2")
