"""From PicoD to a program of the user's: fork, become the user, exec. Nothing here knows HTTP or asyncio.

A guarded process gets a *guard* between PicoD and itself: a child subreaper, under which every
descendant stays however it forks, so that the whole tree can be found and killed. The guard exits
with its process; background processes that this one left behind then become PicoD's children.

What happens is told on a pipe, one record of 9 bytes each (atomic: pipe(7)): a kind, two numbers.
`X` (wait status, 0): the guarded process ended. `E` (step, errno): the program was not started.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import struct
from dataclasses import dataclass, field
from typing import NoReturn

from agentcube.picod import linux

RECORD = struct.Struct("=cii")
EXITED = b"X"
FAILED = b"E"
STEPS = ("fork", "session", "stdio", "cgroup", "limits", "user", "working_dir", "exec")

_REPORT_FD = 3
_DEFAULT_SIGNALS = (
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_DEFAULT_PATH = b"/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Identity:
    """How a child becomes the user: ids (None: it already is), cgroups to move into, rlimits to set."""

    ids: tuple[int, int] | None = None  # uid, gid
    cgroup_fds: tuple[int, ...] = ()
    rlimits: tuple[tuple[int, int, int], ...] = ()  # resource, soft, hard; never raises a hard limit
    reset_oom_score: bool = False


@dataclass(frozen=True)
class Program:
    """What to run: bytes as exec takes them. `argv[0]` without a slash is looked up in `env`'s PATH."""

    argv: tuple[bytes, ...]
    env: dict[bytes, bytes] = field(default_factory=dict)
    working_dir: bytes = b"/"


def spawn(
    program: Program, identity: Identity, stdio: tuple[int, int, int], report: int, *, guarded: bool
) -> int:
    """Start `program` in a session of its own and return the pid of PicoD's new child.

    That is the guard when `guarded`, else the program itself. `stdio` and `report` stay open in the
    caller, who closes its copies. A program that cannot be started is told on `report`.

    Raises:
        OSError: PicoD itself could not fork.
    """
    # Blocked across the fork, so that no handler of PicoD's (asyncio's wake-up pipe!) runs in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _in_child(program, identity, stdio, report, guarded=guarded)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_child(
    program: Program, identity: Identity, stdio: tuple[int, int, int], report: int, *, guarded: bool
) -> NoReturn:
    step = "fork"
    try:
        signal.set_wakeup_fd(-1)
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        if guarded:
            linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
            pid = os.fork()
            if pid != 0:
                _guard(pid, report)
        step = "session"
        os.setsid()
        step = "stdio"
        for target, source in enumerate(stdio):  # PicoD keeps 0, 1 and 2 open: no source is a target
            os.dup2(source, target, inheritable=True)
        step = "cgroup"
        for fd in identity.cgroup_fds:
            os.write(fd, b"0")  # 0: whoever writes
        report = _keep_only(report)
        step = "limits"
        _limit(identity)
        step = "user"
        _become(identity)
        step = "working_dir"
        os.chdir(program.working_dir)
        step = "exec"
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _exec(program)
    except OSError as exc:
        _tell(report, FAILED, STEPS.index(step), exc.errno)
    finally:
        os._exit(127)


def _keep_only(report: int) -> int:
    """Close all but 0, 1, 2 and the report, which is returned under its new number."""
    if report != _REPORT_FD:
        os.dup2(report, _REPORT_FD, inheritable=False)
    linux.close_from(_REPORT_FD + 1)
    return _REPORT_FD


def _guard(pid: int, report: int) -> NoReturn:
    """Wait for `pid`, reaping whatever else ends; tell its status; go away with it."""
    try:
        report = _keep_only(report)  # connections of PicoD's clients must not stay open through us
        linux.set_name(b"picod-guard")
        while True:
            ended, status = os.waitpid(-1, 0)
            if ended == pid:
                _tell(report, EXITED, status, 0)
                os._exit(0)
    finally:
        os._exit(1)


def _tell(report: int, kind: bytes, first: int, second: int | None) -> None:
    os.write(report, RECORD.pack(kind, first, second or 0))


def _limit(identity: Identity) -> None:
    for kind, soft, hard in identity.rlimits:
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = (ceiling if v == resource.RLIM_INFINITY else min(v, ceiling) for v in (soft, hard))
        resource.setrlimit(kind, (soft, hard))
    os.umask(0o022)


def _become(identity: Identity) -> None:
    if identity.reset_oom_score:
        _reset_oom_score(identity)
    if identity.ids is not None:
        uid, gid = identity.ids
        if os.getgroups():
            os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)


def _reset_oom_score(identity: Identity) -> None:
    """Give up the protection that PicoD has; as well as possible, since it is not ours to insist on."""
    try:
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else the file belongs to the machine's root
        if identity.ids is not None:
            linux.set_fs_ids(0, 0)
        with open("/proc/self/oom_score_adj", "wb", buffering=0) as file:
            file.write(b"0")
    except OSError:
        pass


def _exec(program: Program) -> NoReturn:
    """execvp(3) with the program's own PATH. Raises the OSError that tells most."""
    name = program.argv[0]
    if b"/" in name:
        _exec_file(name, program)
    denied = False
    for directory in program.env.get(b"PATH", _DEFAULT_PATH).split(b":"):
        try:
            _exec_file(os.path.join(directory or b".", name), program)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            denied = True
    raise OSError(errno.EACCES if denied else errno.ENOENT, "exec")


def _exec_file(path: bytes, program: Program) -> NoReturn:
    try:
        os.execve(path, program.argv, program.env)  # noqa: S606  (running programs is the purpose)
    except OSError as exc:
        if exc.errno != errno.ENOEXEC:
            raise
        # A script without `#!` goes to the shell, as execvp(3) and every shell do it.
        os.execve(b"/bin/sh", (b"sh", path, *program.argv[1:]), program.env)  # noqa: S606
