"""Guards that wait for a program, so that a call does not wait for a fork; and who forks them.

Forking an interpreter is what a call would cost most (its page tables are copied, then its pages as
they are touched). A guard whose program left nothing behind takes the next one instead: then a call
costs one posix_spawn. Guards wait in a session that is in use; an idle one keeps none.

A fork of PicoD holds on to every page that PicoD changes afterwards: 3.2 MB for each guard, which
with 100 programs at once was more than PicoD may have. So the first few are forked by PicoD, and
further ones by a *nursery*, a fork that does nothing else: they share its pages, which do not change.
"""

from __future__ import annotations

import array
import asyncio
import marshal
import os
import socket
import struct

from agentcube.picod import linux, spawn

PROGRAM_BYTES_MAX = 64 * 1024
"""Longest program that is handed over: it must fit into an empty socket buffer at once."""

NURSERY_S = 2.0
"""How long a nursery may take to fork; only one that was stopped or starved takes longer."""

_LENGTH = struct.Struct("=I")
_PID = struct.Struct("=i")  # or a negative error number
_FD = struct.Struct("=i")
_FDS = 4  # stdio and the report


class Nursery:
    """The process that forks guards, which are children of PicoD all the same. Raises OSError as `Guard`."""

    def __init__(self, identity: spawn.Identity) -> None:
        self.expiry: asyncio.TimerHandle | None = None  # its keeper's to use
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.settimeout(NURSERY_S)
        try:
            self.pid = spawn.fork(lambda: _breed(theirs, identity), guarded=False)
        except OSError:
            self._link.close()
            raise
        finally:
            theirs.close()

    def fork(self, link: socket.socket) -> int:
        """The pid of a new guard that serves `link`.

        Raises:
            OSError: there was no room for another process; TimeoutError or ConnectionError when it
                is the nursery that fails.
        """
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _FD.pack(link.fileno()))
        self._link.sendmsg([b"g"], [rights])
        answer = self._link.recv(_PID.size)
        if not answer:
            raise ConnectionResetError("the nursery is gone")
        (pid,) = _PID.unpack(answer)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        return int(pid)

    def dismiss(self) -> None:
        """Let it go away. Its guards stay. Idempotent."""
        self._link.close()


def _breed(link: socket.socket, identity: spawn.Identity) -> None:
    """In the nursery: fork one guard after the other, until dismissed."""
    linux.close_all_but((link.fileno(), *identity.cgroup_fds))
    spawn.join_groups(identity)  # memory counts where it is used first: guards are the user's to pay
    linux.set_name(b"picod-nursery")
    while True:
        data, ancillary, _, _ = link.recvmsg(1, socket.CMSG_SPACE(_FD.size), socket.MSG_CMSG_CLOEXEC)
        if not data:
            return
        (fd,) = _FD.unpack(ancillary[0][2])
        try:
            pid = linux.fork_sibling()
        except OSError as exc:
            pid = -(exc.errno or 1)
        if pid == 0:
            link.close()
            spawn.stand_alone(guarded=True)
            _serve(socket.socket(fileno=fd), identity)
        os.close(fd)
        link.send(_PID.pack(pid))


class Guard:
    """One guard, waiting or at work. Raises OSError when there is no room for another process."""

    def __init__(self, identity: spawn.Identity, nursery: Nursery | None) -> None:
        self.expiry: asyncio.TimerHandle | None = None  # of its waiting; its keeper's to use
        self._link, theirs = socket.socketpair()
        try:
            if nursery is not None:
                self.pid = nursery.fork(theirs)
            else:
                self.pid = spawn.fork(lambda: _serve(theirs, identity), guarded=True)
        except OSError:
            self._link.close()
            raise
        finally:
            theirs.close()
        self._link.setblocking(False)

    def launch(self, program: spawn.Program, stdio: tuple[int, int, int], report: int) -> bool:
        """Hand a program over. False when it is too long or the guard is gone: nothing was started."""
        payload = marshal.dumps((program.argv, program.env, program.working_dir, program.terminal))
        if len(payload) > PROGRAM_BYTES_MAX:
            return False
        message = _LENGTH.pack(len(payload)) + payload
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (*stdio, report)))
        try:
            return self._link.sendmsg([message], [rights]) == len(message)
        except OSError:
            return False

    def dismiss(self) -> None:
        """Let it go away when it has nothing (more) to guard. Idempotent."""
        self._link.close()


def _serve(link: socket.socket, identity: spawn.Identity) -> None:
    """In the guard: guard one program after the other, until dismissed."""
    linux.close_all_but((link.fileno(), *identity.cgroup_fds))
    while True:
        linux.set_name(b"picod-spare")
        program, fds = _receive(link)
        stdio = (fds[0], fds[1], fds[2])
        spawn.launch(program, identity, stdio, fds[3], guarded=True, link=link.fileno())


def _receive(link: socket.socket) -> tuple[spawn.Program, array.array[int]]:
    """The next program with its stdio and report; exits when there is none."""
    data, ancillary, _, _ = link.recvmsg(
        _LENGTH.size + PROGRAM_BYTES_MAX, socket.CMSG_SPACE(4 * _FDS), socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for _, _, content in ancillary:
        fds.frombytes(content)
    while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
        more = link.recv(PROGRAM_BYTES_MAX)
        if not more:
            os._exit(0)
        data += more
    return spawn.Program(*marshal.loads(data[_LENGTH.size :])), fds  # noqa: S302  (PicoD wrote it)
