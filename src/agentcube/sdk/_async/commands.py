"""Commands and other programs of a session: run one to its end, or start it and go on with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from agentcube.errors import AgentCubeError
from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async._primitives import called, whatever_happens
from agentcube.sdk._async._stream import CANCEL_WITHIN_S
from agentcube.sdk._async.process import AsyncProcess
from agentcube.sdk._core import processes, results
from agentcube.sdk._core.events import Stderr, Stdout
from agentcube.sdk._core.process_track import ProcessTrack
from agentcube.sdk._core.processes import ProcessInfo
from agentcube.sdk._core.requests import Place, Request
from agentcube.sdk._core.results import CommandResult

TIMEOUT_S = 300.0


class AsyncCommands:
    """`commands` of a sandbox.

    A string is a line for the shell (bash where there is one); a list is an argv, taken as it is.
    """

    def __init__(self, connection: AsyncConnection, place: Place) -> None:
        self._connection = connection
        self._place = place

    async def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = TIMEOUT_S,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        check: bool = False,
    ) -> CommandResult:
        """Run a command and wait for its end.

        The callbacks get the output as it comes. When `timeout` (seconds; None: none) strikes, the whole process
        tree is killed and the exit code is 124; it is killed as well when this call is cancelled or interrupted.
        With `check` another exit code than 0 is raised as CommandExecutionError. `stdin` has at most 24 MiB.
        """
        start = processes.start_process(
            self._place, command, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout
        )
        track = ProcessTrack(self._place, start, owned=True)
        async with AsyncProcess(
            self._connection, self._place, track, command=processes.argv_of(command)
        ) as process:
            async for event in process:
                if isinstance(event, Stdout):
                    await called(on_stdout, event.text)
                elif isinstance(event, Stderr):
                    await called(on_stderr, event.text)
        return process.output.check() if check else process.output

    async def start(
        self,
        command: str | Sequence[str],
        *,
        stdin: bool | bytes | str | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        timeout: float | None = None,
        background: bool = False,
    ) -> AsyncProcess:
        """Start a command, and go on with it while it runs.

        `stdin=True` leaves its input open for `write`. With `background` it outlives this program, until it ends,
        `timeout` (seconds) strikes, or the session does; without, it is killed when nobody reads it any more. When this
        call is cancelled, nothing of it stays.
        """
        request = processes.start_process(
            self._place, command, stdin=stdin, env=env, cwd=cwd, timeout_s=timeout, background=background
        )
        argv = processes.argv_of(command)
        if not background:
            track = ProcessTrack(self._place, request, owned=True)
            return await AsyncProcess(self._connection, self._place, track, command=argv)._begin()
        return self._attached(await self._start_in_background(request), argv, taken=0)

    async def attach(self, id: str) -> AsyncProcess:
        """A process that was started before, here or by another program; its output begins with what is still kept.

        A process that is not in the background has one reader, the newest. Raises ProcessNotFound.
        """
        info = await self.get(id)
        return self._attached(info, info.command or ((info.shell,) if info.shell else ()), taken=None)

    async def get(self, id: str) -> ProcessInfo:
        """One process. Raises ProcessNotFound."""
        request = processes.process_call(self._place, "GET", id, "get", repeatable=True)
        response = await self._connection.send(request)
        return processes.process_info(results.object_of(response.content, request.what), request.what)

    async def list(self) -> Sequence[ProcessInfo]:
        """The processes that run, and those of which the server keeps the end."""
        found: list[ProcessInfo] = []
        cursor: str | None = None
        while True:
            request = processes.list_processes(self._place, cursor=cursor)
            response = await self._connection.send(request)
            page, cursor = processes.processes_of(response.content, request.what)
            found += page
            if cursor is None:
                return found

    async def _start_in_background(self, request: Request) -> ProcessInfo:
        """Started; if this is cancelled meanwhile, nothing of it stays."""
        sent: list[bool] = []
        try:
            return await self._started(request, lambda: sent.append(True))
        except AgentCubeError:
            raise
        except BaseException:
            if sent:
                what = f"cancel: {request.what}"
                await whatever_happens(partial(self._take_back, request), what, within_s=CANCEL_WITHIN_S)
            raise

    async def _started(self, request: Request, sending: Callable[[], None] | None = None) -> ProcessInfo:
        response = await self._connection.send(request, sending=sending)
        return processes.process_info(results.object_of(response.content, request.what), request.what)

    async def _take_back(self, request: Request) -> None:
        """Learn what a start began whose answer was not awaited (its key makes asking again safe), and end it."""
        info = await self._started(request)
        await self._connection.send(processes.process_call(self._place, "DELETE", info.id, "end"))

    def _attached(self, info: ProcessInfo, argv: Sequence[str], *, taken: int | None) -> AsyncProcess:
        track = ProcessTrack(self._place, id=info.id)
        track.pid = info.pid
        return AsyncProcess(
            self._connection, self._place, track, command=argv, background=info.background, taken=taken
        )
