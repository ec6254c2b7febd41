"""Taking rights away: identity, capabilities, limits. Order matters; `birth.py` has it."""

from __future__ import annotations

import ctypes
import errno
import os
import resource

from agentcube.drivers.local.inside import kernel

CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_SETFCAP = 5, 6, 7, 31
PICOD_CAPABILITIES = 1 << CAP_KILL | 1 << CAP_SETGID | 1 << CAP_SETUID
"""What PicoD keeps: to become the user, and to end what the user started. Valid in this namespace only."""

MAPPER_CAPABILITIES = 1 << CAP_SETGID | 1 << CAP_SETUID | 1 << CAP_SETFCAP
"""What it takes to map ranges of ids into a child namespace (user_namespaces(7))."""

_CAP_LAST = 63
_SECURE_NOROOT = 1 << 0 | 1 << 1  # being uid 0 gives no capability at exec; and locked
_SECURE_KEEP_CAPS_LOCKED = 1 << 5
_SECURE_NO_AMBIENT = 1 << 6 | 1 << 7

_OPEN_FILES = (4096, 16_384)
"""Soft and hard limit of open files per process: enough for servers; times `pids_max` it bounds the rest."""

# What the kernel counts per user, and for all sandboxes together at the id that made them: so none
# may take it all. Signals in queues, bytes in POSIX queues and in locked memory.
_SHARED_LIMITS = (
    (resource.RLIMIT_SIGPENDING, 4096),
    (resource.RLIMIT_MSGQUEUE, 256 << 10),
    (resource.RLIMIT_MEMLOCK, 1 << 20),
)

_OBJECTS = {
    # More namespaces of a sandbox's own would be a way around its walls; the filter says no as well.
    **{f"max_{kind}_namespaces": 0 for kind in "user mnt pid net ipc uts cgroup time".split()},
    "max_inotify_instances": 32,
    "max_inotify_watches": 16_384,
    "max_fanotify_groups": 0,
}
"""Limits of this user namespace (/proc/sys/user), where they are writable."""


def become_root_inside() -> None:
    """Take uid and gid 0 of a freshly mapped user namespace, and leave the server's groups behind."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def limit(kind: int, soft: int, hard: int) -> None:
    """Set a resource limit, never above the hard limit that holds already."""
    _, now = resource.getrlimit(kind)
    if now != resource.RLIM_INFINITY:
        hard = now if hard == resource.RLIM_INFINITY else min(hard, now)
    resource.setrlimit(kind, (min(soft, hard) if hard != resource.RLIM_INFINITY else soft, hard))


def set_limits() -> None:
    """Limits of every sandbox: no core dumps (they would be written by a helper outside), open files."""
    limit(resource.RLIMIT_CORE, 0, 0)
    limit(resource.RLIMIT_NOFILE, *_OPEN_FILES)
    for kind, most in _SHARED_LIMITS:
        limit(kind, most, most)


def lift_limits() -> None:
    """Let nothing that is counted for all sandboxes together run out; each has limits of its own then."""
    for kind in (resource.RLIMIT_NPROC, *(kind for kind, _ in _SHARED_LIMITS)):
        try:
            resource.setrlimit(kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (ValueError, OSError):
            pass  # root without CAP_SYS_RESOURCE, as in containers: what holds there holds here


def limit_kernel_objects(folder: int) -> None:
    """Bound what this sandbox can have of things that the kernel has a limited number of.

    `folder` is /proc/sys/user, opened while it was writable. The last step with mounts: each detached
    mount is a namespace for a moment. As well as possible: in a container /proc/sys is read-only, and
    the machine's limits hold.
    """
    for name, most in _OBJECTS.items():
        try:
            fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=folder)
            try:
                os.write(fd, str(most).encode())
            finally:
                os.close(fd)
        except OSError:
            continue


def drop_capabilities(keep: int) -> None:
    """Keep the capabilities in the bit set `keep`, and none that an exec could bring back."""
    bits = _SECURE_NOROOT | _SECURE_KEEP_CAPS_LOCKED | _SECURE_NO_AMBIENT
    kernel.prctl("set the secure bits", kernel.PR_SET_SECUREBITS, bits)
    _shrink_bounding_set(keep)
    kernel.capset(keep)


def _shrink_bounding_set(keep: int) -> None:
    for capability in range(_CAP_LAST + 1):
        if not keep >> capability & 1:
            try:
                kernel.prctl("drop a capability for good", kernel.PR_CAPBSET_DROP, capability)
            except kernel.StepFailed as exc:
                if exc.errno != errno.EINVAL:
                    raise
                return  # the kernel knows no capability of that number, nor higher ones


def work_on_files_as(uid: int, gid: int) -> None:
    """From here on files are opened and made with the user's rights (setfsuid(2)); drops CAP_DAC_* too."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.setfsgid(gid)
    libc.setfsuid(uid)
    if libc.setfsuid(-1) != uid or libc.setfsgid(-1) != gid:
        raise kernel.StepFailed(errno.EPERM, "take the user's file rights")


def no_new_privileges() -> None:
    """No exec of this process or its children can gain rights: setuid files are plain files."""
    kernel.prctl("set no_new_privs", kernel.PR_SET_NO_NEW_PRIVS, 1)


def become_nobody(uid: int) -> None:
    """Give up root for an id that owns nothing, with every capability, for good."""
    _shrink_bounding_set(0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    no_new_privileges()


def keep_only(capabilities: int) -> None:
    """Keep these capabilities of this namespace and no others, also across exec, for good."""
    _shrink_bounding_set(capabilities)
    kernel.capset(capabilities)
    no_new_privileges()


def limit_written_files(most: int | None) -> None:
    """Let no file grow beyond `most` bytes by what this process writes; None for no such limit (again)."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if most is None else most, hard))


def lower_oom_score() -> None:
    """Be no safer from the machine's OOM killer than a program of the user's. As well as possible."""
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            if int(file.read()) < 0:
                file.write(b"0")
    except OSError:
        pass


def undumpable() -> None:
    """Nobody without CAP_SYS_PTRACE can trace this process, or read its memory, environment, descriptors."""
    kernel.prctl("become undumpable", kernel.PR_SET_DUMPABLE, 0)
