"""Attends a process in a session: its streams are ours, signals and keys go to it, its end is our exit code."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine
from typing import TYPE_CHECKING

from agentcube.cli import terminal
from agentcube.cli.render import notice
from agentcube.cli.streams import SIGNALLED, Inlet, Outlet, hearing
from agentcube.cli.terminal import STDERR, STDIN, STDOUT
from agentcube.errors import AgentCubeError, ProcessEnded, StdinClosed
from agentcube.sdk._core.events import Exited, Gap, Stderr, Stdout

if TYPE_CHECKING:
    from agentcube.sdk._async.process import AsyncProcess

EXIT_CODES = 256
GONE_WITHIN_S = (
    5.0  # after a signal, for a program at a terminal: it is not typed Ctrl-C, somebody wants us gone
)

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
_PASSED_ON = ("SIGUSR1", "SIGUSR2")  # which mean what the program says, and nothing to us
_OF_THE_TERMINAL = ("SIGWINCH", "SIGTSTP", "SIGCONT")
_CANNOT_RUN = (126, 127)  # the reason stands in its stderr


class Attendance:
    """One process, and us.

    `input`: what we read is the process's input. `keys`: our terminal is the process's, every key goes to it but for
    `~.`, the way out. `owned`: signals are forwarded (the second one kills), and who leaves ends the process; else
    both only end the attendance.
    """

    def __init__(self, process: AsyncProcess, *, input: bool, keys: bool, owned: bool = True) -> None:
        self._process = process
        self._input = input
        self._keys = keys
        self._owned = owned
        self._raw = terminal.Raw(STDIN)
        self._signals = 0
        self._left: int | None = None
        self._following: asyncio.Future[int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def attend(self) -> int:
        """Until the process has ended, or we leave it. Returns the exit code.

        Raises AgentCubeError when the connection is lost for good, and OSError when our own streams are.
        """
        names = (*_FORWARDED, *(_OF_THE_TERMINAL if self._keys else ()), *(_PASSED_ON if self._owned else ()))
        ended = False
        with self._raw if self._keys else contextlib.nullcontext(), hearing(self._hear, *names):
            self._following = asyncio.ensure_future(self._follow())
            try:
                if self._input:
                    self._begin(self._feed())
                code = await self._following
                ended = True
                return code
            except asyncio.CancelledError:
                if self._left is None:
                    raise
                return self._left
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                if self._keys and not ended:
                    os.write(STDOUT, terminal.RESET)

    async def _follow(self) -> int:
        with Outlet() as outlet:
            async for event in self._process:
                match event:
                    case Stdout():
                        await outlet.write(STDOUT, event.data)
                    case Stderr():
                        await outlet.write(STDERR, event.data)
                    case Gap():
                        self._say(
                            f"{event.end - event.start} bytes of {event.stream} were overwritten unread"
                        )
                    case Exited() if event.error and event.exit_code not in _CANNOT_RUN:
                        self._say(event.error)
        return (self._process.exit_code or 0) % EXIT_CODES

    async def _feed(self) -> None:
        """Read on while a write waits: the way out must be found whatever the process does with its input."""
        typed: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1024 if self._keys else 1)
        self._begin(self._send(typed))
        inlet, escape = Inlet(STDIN), terminal.Escape()
        while data := await inlet.read():
            if self._keys:
                data, out = escape.feed(data)
                if out:
                    return self._leave(SIGNALLED + signal.SIGHUP if self._owned else 0)
            if data:
                await typed.put(data)
        await typed.put(b"")

    async def _send(self, typed: asyncio.Queue[bytes]) -> None:
        more = True
        while more:
            data = await typed.get()
            more = bool(data)
            while more and not typed.empty():
                piece = typed.get_nowait()
                data, more = data + piece, bool(piece)
            if data:
                await self._told(self._process.write(data, timeout=None))
        await self._told(self._process.close_stdin())

    def _hear(self, number: int) -> None:
        name = signal.Signals(number).name
        if name == "SIGTSTP":  # from outside, since Ctrl-Z is a key: stop with the terminal in order
            self._raw.restore()
            os.kill(os.getpid(), signal.SIGSTOP)
        elif name == "SIGCONT":
            self._raw.resume()
            self._begin(self._resize())
        elif name == "SIGWINCH":
            self._begin(self._resize())
        elif name in _PASSED_ON:
            self._begin(self._told(self._process.signal(name)))
        elif not self._owned:
            self._leave(SIGNALLED + number)
        else:
            self._forward(number, name)

    def _forward(self, number: int, name: str) -> None:
        self._signals += 1
        if self._signals == 1:
            self._begin(self._told(self._process.signal(name)))
            if self._keys or name == "SIGHUP":
                asyncio.get_running_loop().call_later(GONE_WITHIN_S, self._leave, SIGNALLED + number)
        elif self._signals == 2:
            self._begin(self._told(self._process.kill()))
        else:
            self._leave(SIGNALLED + number)

    async def _resize(self) -> None:
        await self._told(self._process.resize(*terminal.size_of(STDIN, STDOUT)))

    async def _told(self, call: Coroutine[None, None, None]) -> None:
        try:
            await call
        except (ProcessEnded, StdinClosed):
            pass
        except AgentCubeError as exc:
            self._say(exc.detail)

    def _leave(self, code: int) -> None:
        assert self._following is not None
        if not self._following.done():
            self._left = code
            self._following.cancel()

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _say(self, text: str) -> None:
        notice(text, end="\r\n" if self._keys else "\n")
