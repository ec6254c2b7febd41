"""A fork whose child is the parent's sibling: one copy of the page tables instead of two.

What glibc's fork does is clone(2) with the address of the thread's own id, between hooks; here it is
the same call with CLONE_PARENT. Only in a process with one thread: nothing else is held then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal

_PR_GET_TID_ADDRESS = 40
_CLONE_PARENT, _CLONE_CHILD_CLEARTID, _CLONE_CHILD_SETTID = 0x8000, 0x20_0000, 0x100_0000
_FLAGS = _CLONE_PARENT | _CLONE_CHILD_CLEARTID | _CLONE_CHILD_SETTID | signal.SIGCHLD
_CALLS = {
    "x86_64": (56, False),
    "aarch64": (220, True),
}  # number of clone(2), whether tls comes before child_tid


def fork_sibling() -> int | None:
    """Like os.fork, but the child's parent is ours. None where this cannot be done. Raises OSError."""
    call = _CALLS.get(platform.machine())
    if call is None or not _is_glibc() or len(os.listdir("/proc/self/task")) != 1:
        return None
    own_id = _address_of_own_id()
    return None if own_id is None else _clone(call, own_id)


def _is_glibc() -> bool:
    return hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def _address_of_own_id() -> ctypes.c_void_p | None:
    """Where glibc keeps this thread's id; the kernel was told at the thread's start."""
    address = ctypes.c_void_p()
    if ctypes.CDLL(None).prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0) != 0 or not address.value:
        return None
    return address if ctypes.c_int.from_address(address.value).value == os.getpid() else None


def _clone(call: tuple[int, bool], own_id: ctypes.c_void_p) -> int:
    number, tls_first = call
    nothing = ctypes.c_long(0)
    last = (nothing, own_id) if tls_first else (own_id, nothing)
    library = ctypes.PyDLL(None, use_errno=True)  # which keeps the interpreter's lock during the call
    library.syscall.restype = ctypes.c_long
    ctypes.pythonapi.PyOS_BeforeFork()
    pid: int = library.syscall(ctypes.c_long(number), ctypes.c_long(_FLAGS), nothing, nothing, *last)
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        return 0
    ctypes.pythonapi.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(ctypes.get_errno() or errno.EAGAIN, "clone")
    return pid
