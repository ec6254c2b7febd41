"""The few kernel calls that Python's `os` does not wrap, each checked. It knows nothing of PicoD.

System call numbers above 423 are the same on every architecture (x86-64 and arm64 included).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

_RENAME_NOREPLACE = 1

_NR_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}
_NR_CLOSE_RANGE = 436
_NR_OPENAT2 = 437
_NR_CLONE = {"aarch64": 220}.get(os.uname().machine, 56)
_CLONE_PARENT = 0x8000
_SIGCHLD = 17
_FD_MAX = 0xFFFF_FFFF
_OPEN_HOW = struct.Struct("=QQQ")  # flags, mode, resolve

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall_with_gil = ctypes.PyDLL(None, use_errno=True).syscall
_syscall_with_gil.restype = ctypes.c_long


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, value: int) -> None:
    """Set one process attribute. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise _failed(f"prctl({option})")


def fork_sibling() -> int:
    """Fork, with our own parent as the parent of the child. Returns as `os.fork` does. Raises OSError.

    A bare clone(2): what Python and libc do around a fork stays undone. Only for a process that has
    no other threads, and whose child is content with that.
    """
    pid: int = _syscall_with_gil(_NR_CLONE, ctypes.c_ulong(_CLONE_PARENT | _SIGCHLD), 0, 0, 0, 0)
    if pid < 0:
        raise _failed("clone")
    return pid


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


def fd_path(fd: int) -> bytes:
    """A path that means what `fd` has open, whatever moves meanwhile (proc(5)); for calls that take only paths."""
    return b"/proc/self/fd/%d" % fd


def rename_exclusively(from_dir: int, name: bytes, to_dir: int, new_name: bytes) -> None:
    """Rename unless something has the new name: FileExistsError. Raises OSError.

    Where the kernel or the file system knows no RENAME_NOREPLACE, another program may come between.
    """
    number = _NR_RENAMEAT2.get(os.uname().machine)
    if number is not None:
        arguments = (
            ctypes.c_int(from_dir),
            ctypes.c_char_p(name),
            ctypes.c_int(to_dir),
            ctypes.c_char_p(new_name),
        )
        if _syscall(number, *arguments, ctypes.c_uint(_RENAME_NOREPLACE)) == 0:
            return
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS):
            raise _failed("renameat2")
    try:
        os.stat(new_name, dir_fd=to_dir, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(name, new_name, src_dir_fd=from_dir, dst_dir_fd=to_dir)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def inotify_init() -> int:
    """A descriptor for events of files, not blocking (inotify(7)). Raises OSError: EMFILE over the user's limit."""
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise _failed("inotify_init1")
    return fd


def inotify_add_watch(inotify: int, fd: int, mask: int) -> int:
    """Watch what `fd` has open; the watch's number. Raises OSError: ENOSPC over the user's limit."""
    watch: int = _libc.inotify_add_watch(inotify, ctypes.c_char_p(fd_path(fd)), ctypes.c_uint32(mask))
    if watch < 0:
        raise _failed("inotify_add_watch")
    return watch


def inotify_rm_watch(inotify: int, watch: int) -> None:
    """End a watch. One that is over already is no error."""
    _libc.inotify_rm_watch(inotify, watch)
