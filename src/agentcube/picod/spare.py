"""A guard that is forked before its program is known, so that a call does not wait for the fork.

Forking an interpreter is what a call costs most (its page tables are copied, then its pages as they
are touched); posix_spawn from the waiting guard costs a third. One waits in a session that is in
use; an idle session keeps none.
"""

from __future__ import annotations

import array
import marshal
import os
import socket
import struct
from typing import NoReturn

from agentcube.picod import linux, spawn

PROGRAM_BYTES_MAX = 64 * 1024
"""Longest program that is handed over: it must fit into an empty socket buffer at once."""

_LENGTH = struct.Struct("=I")
_FDS = 4  # stdio and the report


class Spare:
    """One waiting guard. Raises OSError when there is no room for another process."""

    def __init__(self, identity: spawn.Identity) -> None:
        self._socket, theirs = socket.socketpair()
        try:
            self.pid = spawn.fork(lambda: _wait(theirs, identity), guarded=True)
        except OSError:
            self._socket.close()
            raise
        finally:
            theirs.close()
        self._socket.setblocking(False)

    def launch(self, program: spawn.Program, stdio: tuple[int, int, int], report: int) -> bool:
        """Hand a program over; the spare is its guard then, and this object is used up.

        False when the program is too long for it or the spare is gone: nothing was started.
        """
        payload = marshal.dumps((program.argv, program.env, program.working_dir))
        try:
            if len(payload) > PROGRAM_BYTES_MAX:
                return False
            message = _LENGTH.pack(len(payload)) + payload
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (*stdio, report)))
            return self._socket.sendmsg([message], [rights]) == len(message)
        except OSError:
            return False
        finally:
            self._socket.close()  # what was not handed over whole, the spare takes for its dismissal

    def dismiss(self) -> None:
        """Let it go away."""
        self._socket.close()


def _wait(link: socket.socket, identity: spawn.Identity) -> NoReturn:
    """In the spare: wait for a program, then be its guard."""
    linux.close_all_but((link.fileno(), *identity.cgroup_fds))
    linux.set_name(b"picod-spare")
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
    program = spawn.Program(*marshal.loads(data[_LENGTH.size :]))  # noqa: S302  (PicoD wrote it)
    spawn.launch(program, identity, (fds[0], fds[1], fds[2]), fds[3], guarded=True)
