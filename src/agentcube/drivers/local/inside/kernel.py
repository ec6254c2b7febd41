"""Kernel calls through ctypes. Each is checked, and each failure says which step of whose work it was."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Mapping, Sequence

from agentcube.drivers.local.inside.numbers import number

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

CLONE_NEWNS = 0x0002_0000
CLONE_NEWCGROUP = 0x0200_0000
CLONE_NEWUTS = 0x0400_0000
CLONE_NEWIPC = 0x0800_0000
CLONE_NEWUSER = 0x1000_0000
CLONE_NEWPID = 0x2000_0000
CLONE_NEWNET = 0x4000_0000

AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_MNT_DETACH = 2
_MS_PRIVATE = 1 << 18
_OPEN_TRIES = 100
"""openat2(2): EAGAIN while a `..` was followed and anything on the machine was renamed or mounted; try again."""
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10

# Attributes of mounts (linux/mount.h).
RDONLY, NOSUID, NODEV, NOEXEC = 0x01, 0x02, 0x04, 0x08

PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

_KEYCTL_JOIN_SESSION_KEYRING = 1
_CLOSE_RANGE_MAX = 0xFFFF_FFFF
_SIOCSIFFLAGS = 0x8914
_IFF_UP, _IFF_RUNNING = 0x1, 0x40


class StepFailed(OSError):
    """A kernel call failed. `step` says what it was for; `errno` is the kernel's answer."""

    def __init__(self, number: int, step: str, hint: str = "") -> None:
        super().__init__(number, f"{step}: {os.strerror(number)}{f' ({hint})' if hint else ''}")
        self.number = number
        self.step = step

    def __str__(self) -> str:
        return str(self.strerror)


def call(step: str, name: str, *args: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """System call `name`; returns its result, or raises StepFailed naming `step`."""
    nr = number(name)
    if nr is None:
        raise StepFailed(errno.ENOSYS, step)
    raw = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    while True:
        result = int(_libc.syscall(ctypes.c_long(nr), *raw))
        if result >= 0:
            return result
        error = ctypes.get_errno()
        if error != errno.EINTR:
            raise StepFailed(error, step)


def prctl(step: str, option: int, *args: int) -> int:
    """Change an attribute of this process; missing arguments are zero."""
    padded = (*args, *([0] * (4 - len(args))))
    return call(step, "prctl", option, *padded)


def unshare(flags: int, step: str) -> None:
    """Leave the namespaces in `flags` for fresh ones."""
    call(step, "unshare", flags)


def open_tree(path: str, step: str, *, recursive: bool = True, within: Sequence[str] | None = None) -> int:
    """A detached copy of the mount at `path`, as a close-on-exec descriptor. Needs Linux 5.2.

    With `within`, what `path` leads to, links resolved, has to be one of these directories or below;
    it is looked at after it was opened, so that nobody can put a link there in between.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    if within is None:
        return call(step, "open_tree", AT_FDCWD, os.fsencode(path), flags)
    found = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not is_within(found, within):
            raise StepFailed(errno.EACCES, step, "it leads out of the directories that templates may use")
        return call(step, "open_tree", found, b"", flags | _AT_EMPTY_PATH)
    finally:
        os.close(found)


def is_within(fd: int, folders: Sequence[str]) -> bool:
    """Whether what `fd` stands for is one of these directories (real paths) or lies below one."""
    real = os.readlink(f"/proc/self/fd/{fd}")
    return any(real == folder or real.startswith(folder.rstrip("/") + "/") for folder in folders)


def set_mount(fd: int, step: str, *, attributes: int, recursive: bool = True) -> None:
    """Set attributes of the mount at descriptor `fd`, and of all below it. Needs Linux 5.12."""
    record = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    call(step, "mount_setattr", fd, b"", flags, ctypes.create_string_buffer(record, len(record)), len(record))


def set_private(step: str) -> None:
    """Cut every mount of this namespace off from the one it was copied from, both ways."""
    record = struct.pack("=QQQQ", 0, 0, _MS_PRIVATE, 0)
    buffer = ctypes.create_string_buffer(record, len(record))
    call(step, "mount_setattr", AT_FDCWD, b"/", _AT_RECURSIVE, buffer, len(record))


def new_mount(kind: str, options: Mapping[str, str | None], attributes: int, step: str) -> int:
    """A detached mount of a new `kind` file system; an option with value None is a flag.

    The kernel's own words about what it did not like go into the error.
    """
    fs = call(step, "fsopen", kind.encode(), _FSOPEN_CLOEXEC)
    try:
        for key, value in options.items():
            command = _FSCONFIG_SET_FLAG if value is None else _FSCONFIG_SET_STRING
            data = None if value is None else os.fsencode(value)
            call(f"{step} ({key})", "fsconfig", fs, command, key.encode(), data, 0)
        call(step, "fsconfig", fs, _FSCONFIG_CMD_CREATE, None, None, 0)
        return call(step, "fsmount", fs, _FSMOUNT_CLOEXEC, attributes)
    except StepFailed as exc:
        raise StepFailed(exc.number, exc.step, _complaint(fs)) from exc
    finally:
        os.close(fs)


def _complaint(fs: int) -> str:
    try:
        return os.read(fs, 400).decode("utf-8", "replace").strip()
    except OSError:
        return ""


def attach(mount: int, target: int, step: str) -> None:
    """Put the detached mount `mount` where the O_PATH descriptor `target` points."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    call(step, "move_mount", mount, b"", target, b"", flags)


def open_in(root: int, path: str, step: str) -> int:
    """An O_PATH descriptor of `path` below descriptor `root`; symlinks and `..` cannot leave it."""
    record = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    buffer = ctypes.create_string_buffer(record, len(record))
    for tries_left in reversed(range(_OPEN_TRIES)):
        try:
            return call(step, "openat2", root, os.fsencode(path), buffer, len(record))
        except StepFailed as exc:
            if exc.errno != errno.EAGAIN or not tries_left:
                raise
    raise AssertionError("unreachable")


def open_deepest(root: int, parts: Sequence[str], step: str) -> tuple[int, int]:
    """As `open_in`: what is there of a path in parts, as deep as it is; and how many of the parts that are."""
    for known in range(len(parts), 0, -1):
        try:
            return open_in(root, "/".join(parts[:known]), step), known
        except StepFailed as exc:
            if exc.errno != errno.ENOENT:
                raise
    return open_in(root, ".", step), 0


def pivot_to_cwd(step: str) -> None:
    """Make the current directory (a mount) the root and let go of the old one (pivot_root(2), NOTES)."""
    call(step, "pivot_root", b".", b".")
    call(step, "umount2", b".", _MNT_DETACH)
    os.chdir("/")


def close_all_but(keep: set[int]) -> None:
    """Close every descriptor above stderr that is not in `keep`."""
    low = 3
    for fd in sorted(fd for fd in keep if fd >= low):
        if fd > low:
            call("close descriptors", "close_range", low, fd - 1, 0)
        low = fd + 1
    call("close descriptors", "close_range", low, _CLOSE_RANGE_MAX, 0)


def receive(sock: socket.socket, size: int, fds_max: int) -> tuple[bytes, list[int]]:
    """One message and the descriptors that came with it, close-on-exec from the first moment.

    Not socket.recv_fds: that one drops its `flags` (CPython 3.11), and so the descriptors leak into
    whatever is started next.
    """
    item = struct.calcsize("i")
    data, ancillary, _, _ = sock.recvmsg(size, socket.CMSG_SPACE(fds_max * item), socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, record in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds += [fd for (fd,) in struct.iter_unpack("i", record[: len(record) - len(record) % item])]
    return data, fds


def loopback_up() -> None:
    """Bring up `lo` of this network namespace: 127.0.0.1 and ::1 answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14s", b"lo", _IFF_UP | _IFF_RUNNING, b"")
        buffer = ctypes.create_string_buffer(request, len(request))
        call("bring up the loopback interface", "ioctl", sock.fileno(), _SIOCSIFFLAGS, buffer)


def fresh_keyring() -> None:
    """Leave the session keyring that was inherited. Kernels without keys have none to leave."""
    try:
        call("leave the session keyring", "keyctl", _KEYCTL_JOIN_SESSION_KEYRING, None)
    except StepFailed as exc:
        if exc.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT):
            raise


def capset(permitted: int) -> None:
    """Keep exactly the capabilities in the bit set `permitted`, permitted and effective; none inheritable."""
    header = struct.pack("=II", 0x2008_0522, 0)  # _LINUX_CAPABILITY_VERSION_3
    low, high = permitted & 0xFFFF_FFFF, permitted >> 32
    data = struct.pack("=6I", low, low, 0, high, high, 0)
    call(
        "drop capabilities",
        "capset",
        ctypes.create_string_buffer(header, len(header)),
        ctypes.create_string_buffer(data, len(data)),
    )


def set_title(title: bytes) -> None:
    """Overwrite this process's command line, which anybody in its pid namespace can read."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end: fields 48 and 49 of proc(5)
    if 0 < start < end:
        ctypes.memmove(start, title[: end - start - 1].ljust(end - start, b"\0"), end - start)


def install_filter(program: bytes) -> None:
    """Install a seccomp filter (array of sock_filter) for this thread and all it will start. For good."""
    code = ctypes.create_string_buffer(program, len(program))
    record = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    call("install the seccomp filter", "seccomp", 1, 0, ctypes.create_string_buffer(record, len(record)))
