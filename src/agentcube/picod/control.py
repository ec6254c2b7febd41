r"""The control socket: connections to ports in the sandbox, passed out as descriptors.

Protocol (as `agentcube.wire.control`, spelled again): one exchange per connection. `DIAL <port>\n`
is answered by `+` with the connected socket attached, or by `-`, an errno name and `\n`. Anything
else closes the connection. The socket's path is on the host's side: who reaches it may ask.
"""

from __future__ import annotations

import array
import asyncio
import errno
import re
import socket

GRANTED = b"+"
REFUSED = b"-"
DEADLINE_S = 5.0
ASKERS_MAX = 256
_DIAL = re.compile(rb"DIAL ([0-9]{1,5})\n")
_LOOPBACK = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
_ACCEPT_PAUSE_S = 0.1  # when there are no descriptors left


class Control:
    """Serves the listening socket until the process ends."""

    def __init__(self, loop: asyncio.AbstractEventLoop, listener: socket.socket) -> None:
        self._loop = loop
        self._listener = listener
        self._tasks: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        self._loop.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            asker, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:
            self._loop.remove_reader(self._listener.fileno())
            self._loop.call_later(_ACCEPT_PAUSE_S, self._listen)
            return
        if len(self._tasks) >= ASKERS_MAX:
            asker.close()
            return
        task = self._loop.create_task(self._serve(asker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, asker: socket.socket) -> None:
        with asker:
            asker.setblocking(False)
            try:
                await asyncio.wait_for(self._exchange(asker), DEADLINE_S)
            except (OSError, asyncio.TimeoutError):
                pass  # the asker sees the end of the connection

    async def _exchange(self, asker: socket.socket) -> None:
        line = b""
        while not line.endswith(b"\n") and len(line) < 16:
            data = await self._loop.sock_recv(asker, 16)
            if not data:
                return
            line += data
        match = _DIAL.fullmatch(line)
        port = int(match[1]) if match else 0
        if not 1 <= port <= 65535:
            return
        reason = errno.ECONNREFUSED
        for family, host in _LOOPBACK:
            try:
                with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as target:
                    await self._loop.sock_connect(target, (host, port))
                    rights = array.array("i", [target.fileno()])
                    asker.sendmsg([GRANTED], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                    return
            except OSError as exc:
                if family == socket.AF_INET:
                    reason = exc.errno or reason
        name = errno.errorcode.get(reason, "EIO").encode("ascii")
        await self._loop.sock_sendall(asker, REFUSED + name + b"\n")
