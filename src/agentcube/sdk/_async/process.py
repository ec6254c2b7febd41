"""One process of a session: its output as events, its input, its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from agentcube.errors import ProcessEnded, StdinClosed
from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async._primitives import Lock, sleep
from agentcube.sdk._async._stream import AsyncEventStream
from agentcube.sdk._core import processes, results
from agentcube.sdk._core.errors import ConnectFailed, ConnectionLost, InvalidArgument, TimedOut
from agentcube.sdk._core.events import ProcessEvent
from agentcube.sdk._core.execution import CommandCollector
from agentcube.sdk._core.process_track import ProcessTrack
from agentcube.sdk._core.processes import ProcessInfo
from agentcube.sdk._core.requests import Place
from agentcube.sdk._core.results import CommandResult
from agentcube.sdk._core.retry import Patience
from agentcube.sdk._core.tracks import whole_of

BLOCKED_S = 0.05  # before asking again whether a full pipe takes more; the server has waited for that, too


class AsyncProcess:
    """A process in the session. Iterate over it for its events: `Started`, `Stdout`, `Stderr`, `Gap`, `Exited`.

    A process that is not `background` lives with this object: read its output, because it waits when nobody does, and
    it is killed when nobody has read for half a minute, on leaving the block, and by `aclose`. A background process
    goes on without readers; of each stream the last MiB is kept, and a reader who is too slow is told of the `Gap`.
    """

    def __init__(
        self,
        connection: AsyncConnection,
        place: Place,
        track: ProcessTrack,
        *,
        command: Sequence[str] = (),
        background: bool = False,
        taken: int | None = 0,
    ) -> None:
        """Made by `commands.start` and `commands.attach`. `taken`: how much input it took so far; None: not known."""
        self.background = background
        self._connection = connection
        self._place = place
        self._track = track
        self._events: AsyncEventStream[ProcessEvent] = AsyncEventStream(connection, track)
        self._collector = CommandCollector(command)
        self._waiting: list[ProcessEvent] = []
        self._taken = taken
        self._writing = Lock()

    @property
    def id(self) -> str:
        """The process's id in the session, for `commands.attach`."""
        assert self._track.id is not None, "a process is handed out once it has started"
        return self._track.id

    @property
    def pid(self) -> int | None:
        """The process's number in the sandbox; None before it is known of one that was attached to."""
        return self._track.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code; None until the end was read, by iterating or by `wait`."""
        return self._collector.exited.exit_code if self._collector.exited is not None else None

    @property
    def output(self) -> CommandResult:
        """What has been read so far, by iterating or by `wait`; the exit code is -1 until the end was read."""
        return self._collector.result()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ProcessEvent:
        event = self._waiting.pop(0) if self._waiting else await anext(self._events)
        self._collector.add(event)
        return event

    async def wait(self, timeout: float | None = None) -> CommandResult:
        """The result, once the process has ended; its remaining output is read meanwhile.

        `timeout` in seconds: then TimedOut is raised, and the process goes on.
        """
        self._events.expect_end(None if timeout is None else processes.positive("timeout", timeout))
        try:
            async for _ in self:
                pass
        finally:
            self._events.expect_end(None)
        return self.output

    async def write(self, data: bytes | str, *, timeout: float | None = 60.0) -> None:
        """Write to the process's standard input; text as UTF-8. Returns when the pipe has taken it all.

        Raises TimedOut when the program has not read enough for that in `timeout` seconds, and StdinClosed or
        ProcessEnded when it never will.
        """
        rest = memoryview(data.encode("utf-8") if isinstance(data, str) else data)
        end = None if timeout is None else time.monotonic() + processes.positive("timeout", timeout)
        async with self._writing:
            taken, self._taken = self._taken, None  # not known, should anything go wrong from here on
            if taken is None:
                taken = await self._write(b"", None, end)
            while rest:
                before = taken
                taken = await self._write(bytes(rest[: processes.STDIN_BYTES]), before, end)
                rest = rest[taken - before :]
                if taken == before:
                    await sleep(BLOCKED_S)
            self._taken = taken

    async def close_stdin(self) -> None:
        """Let the process read the end of its input. Idempotent."""
        async with self._writing:
            try:
                await self._connection.send(
                    processes.write_stdin(self._place, self.id, b"", offset=None, close=True)
                )
            except (StdinClosed, ProcessEnded):
                pass

    async def signal(self, signal: str | int, *, tree: bool = False) -> None:
        """Send a signal ("INT", "SIGTERM", 15) to the program's process group; with `tree` to every descendant.

        Raises ProcessEnded.
        """
        await self._connection.send(processes.signal_process(self._place, self.id, signal, tree=tree))

    async def resize(self, cols: int, rows: int) -> None:
        """Give the process's terminal another size, of which it is told. Raises NotATerminal and ProcessEnded."""
        await self._connection.send(processes.resize_process(self._place, self.id, cols, rows))

    async def kill(self) -> None:
        """Kill the process and all its descendants. No error when it has ended.

        What it wrote before can still be read, and `wait` tells how it ended.
        """
        try:
            await self.signal("KILL", tree=True)
        except ProcessEnded:
            pass

    async def info(self) -> ProcessInfo:
        """The process as it is now. Raises ProcessNotFound when the server no longer keeps its record."""
        request = processes.process_call(self._place, "GET", self.id, "get", repeatable=True)
        response = await self._connection.send(request)
        return processes.process_info(results.object_of(response.content, request.what), request.what)

    async def logs(self) -> CommandResult:
        """What a background process wrote last, up to a MiB per stream, without waiting; iteration is not disturbed."""
        if not self.background:
            raise InvalidArgument("only a background process has logs: of others, read the events")
        track = ProcessTrack(self._place, id=self.id, follow=False)
        collector = CommandCollector(())
        async for event in AsyncEventStream(self._connection, track):
            collector.add(event)
        return collector.result()

    async def aclose(self) -> None:
        """Read no more. Unless it runs in the background, the process is killed. Idempotent."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _begin(self) -> Self:
        """Read until the process has started; on failure nothing of it stays."""
        try:
            while self._track.id is None:
                self._waiting.append(await anext(self._events))
        except BaseException:
            await self._events.aclose()
            raise
        return self

    async def _write(self, data: bytes, offset: int | None, end: float | None) -> int:
        """How much input the process has taken in all. A lost connection is made again: the offset makes that safe."""
        request = processes.write_stdin(self._place, self.id, data, offset=offset)
        patience = Patience(processes.GRACE_S)
        while True:
            left_s = request.timeout_s if end is None else end - time.monotonic()
            try:
                if left_s <= 0:
                    raise TimedOut
                response = await self._connection.send(request.waiting(min(request.timeout_s, left_s)))
            except TimedOut as exc:
                unread = f"{len(data)} bytes and more were not taken"
                raise TimedOut(f"process {self.id} does not read its input: {unread}") from exc
            except (ConnectionLost, ConnectFailed):
                delay = patience.delay(time.monotonic())
                if delay is None:
                    raise
                await sleep(delay)
                continue
            return whole_of(results.object_of(response.content, request.what), "offset", request.what)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._track.id} of session {self._place.session_id}>"
