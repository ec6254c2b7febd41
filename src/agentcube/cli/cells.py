"""A cell of a session's kernel on a terminal: text as it comes, charts to files, its end as an exit code."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

from agentcube.cli.attendance import EXIT_CODES
from agentcube.cli.render import notice
from agentcube.cli.streams import SIGNALLED, Outlet, hearing
from agentcube.cli.terminal import STDERR, STDOUT
from agentcube.errors import AgentCubeError
from agentcube.sdk._core.display import Result
from agentcube.sdk._core.events import (
    CellEnded,
    CellError,
    CellEvent,
    CellStarted,
    Displayed,
    DisplayUpdated,
    Gap,
    Stderr,
    Stdout,
)
from agentcube.sdk._core.kernels import DEFAULT_KERNELS

if TYPE_CHECKING:
    from agentcube.sdk import AsyncSandbox

IMPATIENT_S = 0.1  # what a second Ctrl-C leaves a cell to end by itself
INTERRUPTED = SIGNALLED + signal.SIGINT
_EXIT_CODES = {"ok": 0, "interrupted": INTERRUPTED, "timed_out": 124}
_ENDINGS = {
    "interrupted": "the cell was interrupted",
    "timed_out": "the cell timed out",
    "kernel_died": "the kernel died",
}
_NUMBER = re.compile(r"-?\d{1,9}")


class Viewing:
    """Runs one cell and shows what comes of it. `png`: where charts go, the second one to a name with -2."""

    def __init__(self, box: AsyncSandbox, language: str, png: Path | None) -> None:
        self._box = box
        self._language = language
        self._png = png
        self._charts = 0
        self._execution: str | None = None
        self._asked_to_exit: int | None = None
        self._signals = 0
        self._watching: asyncio.Future[int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, code: str, timeout_s: float) -> int:
        """Run the code; the exit code. Raises AgentCubeError, and OSError of our own streams and files."""
        with hearing(self._hear, "SIGINT", "SIGTERM", "SIGHUP"):
            self._watching = asyncio.ensure_future(self._watch(code, timeout_s))
            try:
                return await self._watching
            except asyncio.CancelledError:
                if not self._signals:
                    raise
                return INTERRUPTED
            finally:
                await asyncio.gather(*self._tasks, return_exceptions=True)
                if self._charts and self._png is None:
                    notice(f"{self._charts} charts are not shown: --png FILE writes them to files")

    async def _watch(self, code: str, timeout_s: float) -> int:
        end: CellEnded | None = None
        with Outlet() as outlet:
            async with self._box.stream(code, self._language, timeout=timeout_s) as events:
                async for event in events:
                    fd, data = self._shown(event)
                    if data:
                        await outlet.write(fd, data)
                    if isinstance(event, CellEnded):
                        end = event
        assert end is not None, "a stream of events without its end is an error"
        return self._ended(end)

    def _shown(self, event: CellEvent) -> tuple[int, bytes]:
        """What to write where for an event."""
        match event:
            case CellStarted():
                self._execution = event.execution
            case Stdout():
                return STDOUT, event.data
            case Stderr():
                return STDERR, event.data
            case Displayed() | DisplayUpdated():
                return STDOUT, self._result(event.result)
            case CellError(name="SystemExit") if event.value == "None" or _NUMBER.fullmatch(event.value):
                self._asked_to_exit = int(event.value) % EXIT_CODES if event.value != "None" else 0
            case CellError():
                return STDERR, f"{event}\n".encode("utf-8", "replace")
            case Gap():
                notice("some output was overwritten unread")
        return STDOUT, b""

    def _result(self, result: Result) -> bytes:
        if result.png is not None:
            self._charts += 1
            if self._png is not None:
                name = (
                    self._png
                    if self._charts == 1
                    else self._png.with_stem(f"{self._png.stem}-{self._charts}")
                )
                name.write_bytes(result.png)
                notice(f"chart written to {name}")
                return b""
        return f"{result}\n".encode("utf-8", "replace")

    def _ended(self, end: CellEnded) -> int:
        if end.status == "error" and self._asked_to_exit is not None:
            return self._asked_to_exit
        if end.status not in ("ok", "error"):
            lost = "; its variables are gone" if end.state_lost else ""
            how = _ENDINGS.get(end.status, f"the cell ended as {end.status!r}")
            notice(f"{how}{f': {end.reason}' if end.reason else ''}{lost}")
        return _EXIT_CODES.get(end.status, 1)

    def _hear(self, number: int) -> None:
        """The first signal interrupts the cell, the second ends the kernel, the third only this program."""
        self._signals += 1
        if self._execution is None or self._signals > 2:  # it may still wait for the cell of somebody else
            assert self._watching is not None
            self._watching.cancel()
            return
        self._begin(self._interrupt(self._execution, None if self._signals == 1 else IMPATIENT_S))

    async def _interrupt(self, execution: str, grace_s: float | None) -> None:
        try:
            kernel = await self._box.kernels.get(DEFAULT_KERNELS[self._language])
            await kernel.interrupt(execution=execution, grace=grace_s)
        except AgentCubeError as exc:
            notice(exc.detail)

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
