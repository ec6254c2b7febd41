"""What a process does to become a kernel's host: signals, descriptors, limits, streams, and a clean `__main__`."""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import random
import resource
import shutil
import signal
import sys
import time
import types
from collections.abc import Sequence
from typing import Any

from agentcube.kernelhost.channel import Channel

_CHANNEL_FD_MIN = 512
"""Where the channel goes: out of the way of code that closes "all" descriptors, as daemons do."""

_PR_SET_DUMPABLE, _PR_SET_NAME = 4, 15
_UNBUFFERED = 2  # _IONBF of stdio.h
_FIRST_OWN = 3

Failure = tuple[str, int]  # what was tried, errno


class StepFailed(Exception):
    """A step of becoming a kernel did not work: its name and errno."""

    def __init__(self, step: str, number: int) -> None:
        super().__init__(step)
        self.failure: Failure = (step, number)


def adopt_channel(fd: int) -> Channel:
    """Move the channel to where it stays; `fd` is closed."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = min(_CHANNEL_FD_MIN, max(_FIRST_OWN, soft - 16))
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest)
    os.close(fd)
    return Channel(moved)


def close_others(channel: int) -> None:
    """Close all descriptors but 0 to 2 and the channel."""
    os.closerange(_FIRST_OWN, channel)
    os.closerange(channel + 1, max(channel + 1, _highest_open() + 1))


def _highest_open() -> int:
    return max(int(name) for name in os.listdir("/proc/self/fd"))


def reset_signals() -> None:
    """Default actions, nothing blocked, as after an exec; SIGPIPE stays ignored, as Python has it."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError):
                pass  # the C library's own
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def enter_groups(fds: Sequence[int]) -> None:
    """Move into the control groups whose `cgroup.procs` these are. StepFailed."""
    for fd in fds:
        try:
            os.write(fd, b"0")  # 0: whoever writes
        except OSError as exc:
            raise StepFailed("cgroup", exc.errno or 0) from None


def become_ordinary() -> None:
    """What exec would do to a program: readable in /proc, as likely a victim of the OOM killer as others."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0)
    libc.prctl(_PR_SET_NAME, ctypes.c_char_p(b"python3"), 0, 0, 0)
    try:
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            if int(file.read()) < 0:
                file.write(b"0")
    except OSError:
        pass  # not ours to insist on


def unbuffer_c_output() -> None:
    """Let what C code prints appear at once, in its place between what Python prints."""
    try:
        libc = ctypes.CDLL(None)
        for name in ("stdout", "stderr"):
            libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, _UNBUFFERED, ctypes.c_size_t(0))
    except (OSError, ValueError, AttributeError):
        pass  # a C library without these names; its output comes later, then


class _Stream(io.TextIOWrapper):
    """Text that is written at once: seen as it comes, whole after a crash, and not twice after a fork."""

    def write(self, text: str) -> int:
        count = super().write(text)
        self.flush()
        return count


def open_streams() -> None:
    """New sys.stdin, stdout and stderr on descriptors 0 to 2; stdin is empty."""
    null = os.open("/dev/null", os.O_RDONLY)
    if null != 0:
        os.dup2(null, 0)
        os.close(null)
    empty = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    sys.stdin = sys.__stdin__ = empty  # type: ignore[misc]
    for fd, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(fd, "w", closefd=False)
        stream = _Stream(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", newline="\n")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def settle(request: dict[str, Any]) -> None:
    """Take on what PicoD's `init` says. StepFailed."""
    for kind, soft, hard in request["rlimits"]:
        try:
            _, ceiling = resource.getrlimit(kind)
            if ceiling != resource.RLIM_INFINITY:
                soft, hard = (
                    ceiling if one == resource.RLIM_INFINITY else min(one, ceiling) for one in (soft, hard)
                )
            resource.setrlimit(kind, (soft, hard))
        except (OSError, ValueError) as exc:
            raise StepFailed("limits", getattr(exc, "errno", None) or 22) from None
    os.umask(0o022)
    if request["env"] is not None:
        os.environ.clear()
        os.environ.update(request["env"])
        time.tzset()
    try:
        os.chdir(request["working_dir"])
    except OSError as exc:
        raise StepFailed("working_dir", exc.errno or 0) from None


def clean_up(*, forked: bool) -> None:
    """Leave nothing of the host's own start where the user would find it."""
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.argv = [""]
    sys.path[:] = ["", *filter(None, sys.path)]
    if forked:
        inherited = os.environ.get("PYTHONPATH", "")
        sys.path[1:1] = [entry for entry in inherited.split(":") if entry]
        _find_executable()
        _reseed()


def _find_executable() -> None:
    """Let `sys.executable` be a Python that is there: the one we were forked from may have another path."""
    if not (sys.executable and os.path.exists(sys.executable)):
        found: str | None = shutil.which("python3")
        sys.executable = found or ""


def _reseed() -> None:
    """Forks of one process must not draw the same random numbers."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
