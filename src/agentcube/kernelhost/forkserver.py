"""A warm interpreter, inside the sandbox, that forks kernels: one starts in the time of two forks.

It is the user's own process, behind all walls, with one thread, and holds no secret; what it answers
is not trusted by PicoD. A request is a packet with descriptors: the kernel's channel, its stdout and
its stderr, then `cgroup.procs` files to move into. The answer is the kernel's pid, or `-` and an errno.
"""

from __future__ import annotations

import array
import gc
import os
import signal
import socket
from typing import NoReturn

from agentcube.kernelhost import cloning, newborn
from agentcube.kernelhost.host import Shell, make_shell, run

_DESCRIPTORS_MAX = 16
_REQUEST_BYTES_MAX = 64

_shell: Shell | None = None


def warm() -> None:
    """Import what kernels need and build the shell that they begin with. Idempotent.

    May be called long before `serve`, in an interpreter that this one is forked from: the more
    sandboxes share, the less each one costs. A shell that cannot be built there is built later.
    """
    global _shell
    if _shell is None:
        try:
            shell = make_shell()
            shell.rehearse()
            _shell = shell
        except OSError:
            pass  # older versions of IPython insist on a directory; here there may be none yet


def serve(sock: socket.socket) -> NoReturn:
    """Fork a kernel for each request on the SEQPACKET socket `sock`; exit at its end.

    Must run in a process with one thread. Kernels are reparented to the nearest subreaper above.
    """
    warm()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.collect()
    gc.freeze()  # collections in the kernels must not touch, and so copy, what they share
    while True:
        try:
            fds = _receive(sock)
            if fds is None:
                os._exit(0)
            answer = _start(sock, fds)
            for fd in fds:
                os.close(fd)
            sock.send(answer)
        except OSError:
            os._exit(1)  # PicoD starts kernels without us then


def _receive(sock: socket.socket) -> list[int] | None:
    """The descriptors of the next request; None when there will be none."""
    fds = array.array("i")
    data, ancillary, _, _ = sock.recvmsg(
        _REQUEST_BYTES_MAX, socket.CMSG_SPACE(4 * _DESCRIPTORS_MAX), socket.MSG_CMSG_CLOEXEC
    )
    for _level, _kind, content in ancillary:
        fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return list(fds) if data else None


def _start(sock: socket.socket, fds: list[int]) -> bytes:
    """Fork a kernel that is not our child but PicoD's."""
    try:
        pid = cloning.fork_sibling()
        if pid is None:
            return _fork_twice(sock, fds)
    except OSError as exc:
        return b"-%d" % (exc.errno or 0)
    if pid == 0:
        _begin(sock, fds)
    return b"%d" % pid


def _fork_twice(sock: socket.socket, fds: list[int]) -> bytes:
    told, tell = os.pipe()
    try:
        between = os.fork()
        if between == 0:
            _fork_again(sock, fds, told, tell)
        os.close(tell)
        tell = -1
        answer = os.read(told, 32)
        os.waitpid(between, 0)  # from here on the kernel's parent is PicoD
        return answer or b"-5"  # EIO
    finally:
        os.close(told)
        if tell >= 0:
            os.close(tell)


def _fork_again(sock: socket.socket, fds: list[int], told: int, tell: int) -> NoReturn:
    status = 1
    try:
        pid = os.fork()
        if pid == 0:
            os.close(told)
            os.close(tell)
            _begin(sock, fds)
        os.write(tell, b"%d" % pid)
        status = 0
    except OSError as exc:
        os.write(tell, b"-%d" % (exc.errno or 0))
    finally:
        os._exit(status)


def _begin(sock: socket.socket, fds: list[int]) -> NoReturn:
    """In the kernel's process."""
    try:
        sock.close()
        os.setsid()
        newborn.reset_signals()
        channel, stdout, stderr, *groups = fds
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        newborn.become_ordinary()
        run(newborn.adopt_channel(channel), _shell, groups=groups, forked=True)
    finally:
        os._exit(1)
