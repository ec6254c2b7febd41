"""From PicoD to a program of the user's. Nothing here knows HTTP or asyncio.

PicoD forks; the child enters the user's cgroups and limits, becomes the user and execs. A guarded
program gets a *guard* between PicoD and itself: a child subreaper, under which every descendant
stays however it forks, so that the whole tree can be found and killed. The guard is that forked
child, and starts the program with posix_spawn (a vfork: half the price of forking an interpreter
again). When its program has ended it goes away, and background processes that this one left behind
become PicoD's children; or, with nothing left behind, it waits for another program (`guards`).

What happens is told on a pipe, one record of 9 bytes each (atomic: pipe(7)): a kind, two numbers.
`S` (pid, 0): the guarded program was started.
`X` (wait status, stays): it ended; the guard waits for another one if `stays`.
`E` (step, errno): the program was not started.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import gc
import os
import resource
import signal
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable, NoReturn, TypeVar

from agentcube.picod import linux

RECORD = struct.Struct("=cii")
STARTED = b"S"
EXITED = b"X"
FAILED = b"E"
STEPS = ("stdio", "cgroup", "limits", "working_dir", "user", "exec", "guard")

T = TypeVar("T")
Start = Callable[[bytes, tuple[bytes, ...], Mapping[bytes, bytes]], T]

_REPORT_FD = 3
_ASIDE = 512  # above every number under which a program inherits something
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
    """What to run: bytes as exec takes them. `argv[0]` without a slash is looked up in `env`'s PATH.

    `terminal` is the path of what becomes its stdio and its controlling terminal (guarded only).
    `inherited` are descriptors that it gets besides, by their numbers there (not guarded only).
    """

    argv: tuple[bytes, ...]
    env: dict[bytes, bytes] = field(default_factory=dict)
    working_dir: bytes = b"/"
    terminal: bytes = b""
    inherited: Mapping[int, int] = field(default_factory=dict)


def spawn(
    program: Program, identity: Identity, stdio: tuple[int, int, int], report: int, *, guarded: bool
) -> int:
    """Start `program` in a session of its own and return the pid of PicoD's new child.

    That is the guard when `guarded`, else the program itself. `stdio` and `report` stay open in the
    caller, who closes its copies. A program that cannot be started is told on `report`.

    Raises:
        OSError: PicoD itself could not fork.
    """
    return fork(lambda: launch(program, identity, stdio, report, guarded=guarded), guarded=guarded)


def fork(child: Callable[[], None], *, guarded: bool) -> int:
    """Fork; `child` runs in the new process, in a session of its own and without PicoD's signal handlers.

    Raises:
        OSError: there was no room for another process.
    """
    # Blocked across the fork, so that no handler of PicoD's (asyncio's wake-up pipe!) runs in the child.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _begin(child, guarded=guarded)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(child: Callable[[], None], *, guarded: bool) -> NoReturn:
    try:
        gc.disable()  # it would touch, and so copy, pages that we share with PicoD
        signal.set_wakeup_fd(-1)
        for number in _DEFAULT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        stand_alone(guarded=guarded)
        child()
    finally:
        os._exit(127)


def stand_alone(*, guarded: bool) -> None:
    """Lead a session of our own; a guard also inherits the orphans of its tree."""
    os.setsid()
    if guarded:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)


def launch(
    program: Program,
    identity: Identity,
    stdio: tuple[int, int, int],
    report: int,
    *,
    guarded: bool,
    link: int = -1,
) -> None:
    """In the forked child: start the program, or tell why not.

    Returns only in a guard with a `link` to PicoD, when its program has ended and left nothing
    behind: it can guard another one then. It keeps no descriptor of this one.
    """
    step = "stdio"
    try:
        for target, source in enumerate(stdio):  # 0, 1 and 2 are always open: no source is a target
            os.dup2(source, target, inheritable=True)
        step = "cgroup"
        join_groups(identity)
        if link < 0:
            report = _keep_only(report, program.inherited)
        step = "limits"
        _limit(identity)
        step = "working_dir"
        os.chdir(program.working_dir)  # PicoD's fsuid is the user's already
        step = "user"
        own_oom_score = _set_oom_score(identity, 0)
        _become(identity, for_ever=not guarded)
        step = "exec"
        if guarded:
            pid = _each_candidate(program, functools.partial(_spawn, program.terminal))
            _tell(report, STARTED, pid, 0)
            step = "guard"
            _leave_stdio(stdio, link)
            _become_guard_again(identity, own_oom_score)
            if not _guard(pid, report, reusable=link >= 0):
                os._exit(0)
        else:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            _each_candidate(program, _replace)
    except OSError as exc:
        _tell(report, FAILED, STEPS.index(step), exc.errno)
        os._exit(127)


def join_groups(identity: Identity) -> None:
    """Move into the user's control groups. Raises OSError."""
    for fd in identity.cgroup_fds:
        os.write(fd, b"0")  # 0: whoever writes


def _keep_only(report: int, inherited: Mapping[int, int]) -> int:
    """Close all but 0, 1, 2, what is inherited, and the report, which is returned under its new number."""
    # Copied out of the way first: a number that is wanted may be that of another one.
    kept = [(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ASIDE), target) for target, fd in inherited.items()]
    if report != _REPORT_FD:
        os.dup2(report, _REPORT_FD, inheritable=False)
    linux.close_all_but((_REPORT_FD, *(fd for fd, _ in kept)))
    for fd, target in kept:
        os.dup2(fd, target, inheritable=True)
    return _REPORT_FD


def _replace(path: bytes, argv: tuple[bytes, ...], env: Mapping[bytes, bytes]) -> NoReturn:
    os.execve(path, argv, env)  # noqa: S606  (running programs is the purpose)


def _spawn(terminal: bytes, path: bytes, argv: tuple[bytes, ...], env: Mapping[bytes, bytes]) -> int:
    # What a session leader without a terminal opens becomes its terminal (tty_ioctl(4), TIOCSCTTY).
    stdio = [
        (os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0),
        *((os.POSIX_SPAWN_DUP2, 0, fd) for fd in (1, 2)),
    ]
    return os.posix_spawn(
        path,
        argv,
        env,
        file_actions=stdio if terminal else (),
        setsid=True,
        setsigmask=(),
        setsigdef=_DEFAULT_SIGNALS,
    )


def _leave_stdio(stdio: tuple[int, int, int], link: int) -> None:
    """Let go of the program's pipes, so that they end when its own copies do."""
    for fd in range(3):
        if link < 0:
            os.close(fd)
        else:
            os.dup2(link, fd, inheritable=False)
    for fd in stdio if link >= 0 else ():
        os.close(fd)


def _become_guard_again(identity: Identity, own_oom_score: int) -> None:
    if identity.ids is not None:
        os.setresuid(0, 0, 0)  # out of the user's reach again
    _set_oom_score(identity, own_oom_score)
    if identity.ids is not None:
        linux.set_fs_ids(*identity.ids)
    linux.set_name(b"picod-guard")


def _guard(pid: int, report: int, *, reusable: bool) -> bool:
    """Wait for `pid`, reaping whatever else ends; tell its status, and whether we stay (returned too)."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            break
    stays = reusable and not _has_children()
    _tell(report, EXITED, status, int(stays))
    os.close(report)
    return stays


def _has_children() -> bool:
    """Whether anything lives below us, after reaping what does not."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _tell(report: int, kind: bytes, first: int, second: int | None) -> None:
    os.write(report, RECORD.pack(kind, first, second or 0))


def _limit(identity: Identity) -> None:
    for kind, soft, hard in identity.rlimits:
        _, ceiling = resource.getrlimit(kind)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = (ceiling if v == resource.RLIM_INFINITY else min(v, ceiling) for v in (soft, hard))
        resource.setrlimit(kind, (soft, hard))
    os.umask(0o022)


def _become(identity: Identity, *, for_ever: bool) -> None:
    """Take on the user's ids. Not for ever: keep the saved uid, which exec clears in the program."""
    if identity.ids is not None:
        uid, gid = identity.ids
        if os.getgroups():
            os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid if for_ever else 0)


def _set_oom_score(identity: Identity, score: int) -> int:
    """Change how likely the OOM killer takes us, where PicoD is protected; returns what it was.

    The program gives up PicoD's protection, its guard takes it back. As well as possible: it is
    not ours to insist on.
    """
    if not identity.reset_oom_score:
        return 0
    try:
        linux.prctl(linux.PR_SET_DUMPABLE, 1)  # else the file belongs to the machine's root
        if identity.ids is not None:
            linux.set_fs_ids(0, 0)
        with open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
            before = int(file.read())
            file.write(b"%d" % score)
        return before
    except OSError:
        return 0
    finally:
        linux.prctl(linux.PR_SET_DUMPABLE, 0)


def _each_candidate(program: Program, start: Start[T]) -> T:
    """`start` the program's file, found as execvp(3) does, with the program's own PATH.

    Raises:
        OSError: the one that tells most.
    """
    name = program.argv[0]
    if b"/" in name:
        return _one_candidate(name, program, start)
    denied = False
    for directory in program.env.get(b"PATH", _DEFAULT_PATH).split(b":"):
        path = os.path.join(directory or b".", name)
        try:
            os.stat(path)  # cheaper than a start that fails
            return _one_candidate(path, program, start)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            denied = True
    raise OSError(errno.EACCES if denied else errno.ENOENT, "exec")


def _one_candidate(path: bytes, program: Program, start: Start[T]) -> T:
    try:
        return start(path, program.argv, program.env)
    except OSError as exc:
        if exc.errno != errno.ENOEXEC:
            raise
        # A script without `#!` goes to the shell, as execvp(3) and every shell do it.
        return start(b"/bin/sh", (b"sh", path, *program.argv[1:]), program.env)
