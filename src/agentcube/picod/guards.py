"""Guards that wait for a program, so that a call does not wait for a fork.

Forking an interpreter is what a call would cost most (its page tables are copied, then its pages as
they are touched). A guard whose program left nothing behind takes the next one instead: then a call
costs one posix_spawn. Guards wait in a session that is in use; an idle one keeps none.
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

_LENGTH = struct.Struct("=I")
_FDS = 4  # stdio and the report


class Guard:
    """One guard, waiting or at work. Raises OSError when there is no room for another process."""

    def __init__(self, identity: spawn.Identity) -> None:
        self.expiry: asyncio.TimerHandle | None = None  # of its waiting; its keeper's to use
        self._link, theirs = socket.socketpair()
        try:
            self.pid = spawn.fork(lambda: _serve(theirs, identity), guarded=True)
        except OSError:
            self._link.close()
            raise
        finally:
            theirs.close()
        self._link.setblocking(False)

    def launch(self, program: spawn.Program, stdio: tuple[int, int, int], report: int) -> bool:
        """Hand a program over. False when it is too long or the guard is gone: nothing was started."""
        payload = marshal.dumps((program.argv, program.env, program.working_dir))
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
