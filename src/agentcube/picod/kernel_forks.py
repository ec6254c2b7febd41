"""Where Python kernels come from: a warm fork server of the user's, if there is one, or the image's python3.

The fork server is not trusted: it says a pid, which counts only if that is a child of PicoD's that
nobody else watches. The sources of the kernels' host are kept in memory, because where PicoD lives
there may be no file of ours; a python3 that is executed gets them in a memory file.
"""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
from collections.abc import Sequence
from typing import Any, Callable

from agentcube.picod import processes
from agentcube.picod.reaper import Reaper

START_S = 20.0  # for a fork; only a fork server that was stopped or starved takes longer
_ANSWER_BYTES = 32
_PACKAGE = "kernelhost"
MODULES = (
    "__init__",
    "bundles",
    "channel",
    "cloning",
    "commands",
    "displays",
    "figures",
    "forkserver",
    "host",
    "inline",
    "ipython_shell",
    "loops",
    "newborn",
    "plain_shell",
)
BOOTSTRAP = """\
import array, importlib.util, json, socket, sys
link = socket.socket(fileno=0)
_, sent, _, _ = link.recvmsg(1, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
link.detach()
with open(array.array("i", sent[0][2])[0], encoding="utf-8") as file:
    sources = json.load(file)
class Sources:
    def find_spec(self, name, path=None, target=None):
        if name in sources:
            return importlib.util.spec_from_loader(name, self, is_package=name.count(".") < 2)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        exec(compile(sources[module.__name__], module.__name__, "exec"), module.__dict__)
sys.meta_path.append(Sources())
from agentcube.kernelhost.host import main
main()
"""
"""What python3 is told by -c. Its descriptor 0 is the channel, on which a file with the sources comes first."""

_sources: list[bytes] = []


def load_sources() -> bytes:
    """The sources as JSON; read once, from wherever PicoD itself was imported from. Raises OSError."""
    if not _sources:
        loader: Any = __spec__.loader if __spec__ else None  # of files or of a zip: both give data
        folder = os.path.join(os.path.dirname(os.path.dirname(__file__)), _PACKAGE)
        found = {"agentcube": ""}
        for name in MODULES:
            module = f"agentcube.{_PACKAGE}" + ("" if name == "__init__" else "." + name)
            found[module] = loader.get_data(os.path.join(folder, name + ".py")).decode("utf-8")
        _sources.append(json.dumps(found).encode("ascii"))
    return _sources[0]


def sources_file() -> int:
    """The sources in a new memory file, to be read from its start. Raises OSError."""
    fd = os.memfd_create("kernelhost", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(load_sources())
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Forks:
    """The client of the fork server. `usable` is false without one, and once it has failed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, reaper: Reaper, fd: int, pid: int) -> None:
        self._loop = loop
        self._reaper = reaper
        self._lock = asyncio.Lock()
        self._socket = socket.socket(fileno=fd) if fd >= 0 else None
        if self._socket is not None:
            self._socket.setblocking(False)
            reaper.watch(pid, lambda status: self._give_up())

    @property
    def usable(self) -> bool:
        """Whether there is one that has not failed."""
        return self._socket is not None

    async def start(self, fds: Sequence[int], watch: Callable[[int], None]) -> int | None:
        """The pid of a new kernel, which has `fds` (the caller closes its own); `watch` hears how it ends.

        None when the fork server has failed, and nothing was started. Cancelled, it starts none, or one that
        ends by itself as soon as the caller closes its channel.

        Raises:
            OSError: there was no room for another process, or another descriptor.
        """
        await self._lock.acquire()
        own: list[int] = []
        try:
            own.extend(map(os.dup, fds))  # keeps those before one that fails
        except OSError:
            self._done(own)
            raise
        # In a task of its own: what the fork server was asked for it does, and its answer is to be read.
        return await asyncio.shield(self._loop.create_task(self._start(own, watch)))

    async def _start(self, fds: Sequence[int], watch: Callable[[int], None]) -> int | None:
        try:
            with self._reaper.expecting():
                answer = await self._ask(fds)
                if answer is None or not self._is_kernel(answer):
                    self._give_up()
                    return None
                self._reaper.watch(answer, watch)
                return answer
        finally:
            self._done(fds)

    def _done(self, fds: Sequence[int]) -> None:
        for fd in fds:
            os.close(fd)
        self._lock.release()

    async def _ask(self, fds: Sequence[int]) -> int | None:
        if self._socket is None:
            return None
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        try:
            self._socket.sendmsg([b"fork"], [rights])
            answer = await asyncio.wait_for(self._loop.sock_recv(self._socket, _ANSWER_BYTES), START_S)
            number = int(answer)
        except (OSError, ValueError, asyncio.TimeoutError):
            return None
        if number < 0:
            raise OSError(-number, os.strerror(-number))
        return number

    def _is_kernel(self, pid: int) -> bool:
        if self._reaper.watches(pid):
            return False
        process = processes.read_process(pid)
        return self._reaper.has_reaped(pid) if process is None else process.parent == os.getpid()

    def _give_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
