"""Programs with a terminal: what a person would type into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from agentcube.errors import NotATerminal
from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async.commands import AsyncCommands
from agentcube.sdk._async.process import AsyncProcess
from agentcube.sdk._core import processes
from agentcube.sdk._core.events import Output
from agentcube.sdk._core.process_track import ProcessTrack
from agentcube.sdk._core.requests import Place

SHELL = "command -v bash >/dev/null 2>&1 && exec bash -il; exec sh -i"


class AsyncTerminal:
    """A program with a terminal. Iterate over it for the bytes that it writes to the screen.

    The program is killed when the block is left, or by `aclose`, unless the terminal was attached to.
    """

    def __init__(self, process: AsyncProcess) -> None:
        """Made by `pty.open` and `pty.attach`."""
        self.process = process

    @property
    def id(self) -> str:
        """The process's id in the session, for `pty.attach`."""
        return self.process.id

    @property
    def exit_code(self) -> int | None:
        """The exit code; None until the end was read."""
        return self.process.exit_code

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        async for event in self.process:
            if isinstance(event, Output) and event.data:
                return event.data
        raise StopAsyncIteration

    async def write(self, data: bytes | str, *, timeout: float | None = 60.0) -> None:
        """Type; text as UTF-8. Enter is a carriage return, Ctrl-C byte 3. Raises as `AsyncProcess.write`."""
        await self.process.write(data, timeout=timeout)

    async def resize(self, cols: int, rows: int) -> None:
        """Give the terminal another size, of which the program is told. Raises ProcessEnded."""
        await self.process.resize(cols, rows)

    async def wait(self, timeout: float | None = None) -> int:
        """The exit code, once the program has ended; what it writes meanwhile is dropped. Raises TimedOut."""
        return (await self.process.wait(timeout)).exit_code

    async def signal(self, signal: str | int, *, tree: bool = False) -> None:
        """Send a signal to the program's process group. Raises ProcessEnded."""
        await self.process.signal(signal, tree=tree)

    async def kill(self) -> None:
        """Kill the program and all its descendants. No error when it has ended."""
        await self.process.kill()

    async def aclose(self) -> None:
        """Read no more; the program is killed, unless it was attached to. Idempotent."""
        await self.process.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.process!r}>"


class AsyncPty:
    """`pty` of a sandbox: terminals."""

    def __init__(self, connection: AsyncConnection, place: Place) -> None:
        self._connection = connection
        self._place = place

    async def open(
        self,
        command: str | Sequence[str] | None = None,
        *,
        cols: int = 80,
        rows: int = 24,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
    ) -> AsyncTerminal:
        """A program in a terminal of its own; without a command a shell."""
        chosen = SHELL if command is None else command
        request = processes.start_process(
            self._place,
            chosen,
            env=env,
            cwd=cwd,
            timeout_s=timeout,
            terminal=(cols, rows),
            doing="open a shell" if command is None else "",
        )
        track = ProcessTrack(self._place, request, owned=True)
        argv = processes.argv_of(chosen)
        return AsyncTerminal(await AsyncProcess(self._connection, self._place, track, command=argv)._begin())

    async def attach(self, id: str) -> AsyncTerminal:
        """A terminal that is open already. Its reader before this one is told so, and reads no more.

        Raises ProcessNotFound, and NotATerminal for a process without one.
        """
        commands = AsyncCommands(self._connection, self._place)
        if (await commands.get(id)).terminal is None:
            raise NotATerminal(f"process {id} was started without a terminal: use commands.attach")
        return AsyncTerminal(await commands.attach(id))
