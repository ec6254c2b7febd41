"""The whole of a cell, and of a command, put together from their events. Output is bounded; events are not kept."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from agentcube.sdk._core.display import ERROR_COLOUR, Result, preformatted
from agentcube.sdk._core.errors import CellFailed
from agentcube.sdk._core.events import (
    CellEnded,
    CellError,
    CellEvent,
    CellStarted,
    Displayed,
    DisplayUpdated,
    Exited,
    Gap,
    Output,
    OutputCleared,
    ProcessEvent,
    Started,
    Stderr,
    Stdout,
)
from agentcube.sdk._core.results import CommandResult

OUTPUT_BYTES_MAX = 16 * 1024 * 1024
"""Of each stream this much is kept in a result; who wants more reads events or takes callbacks."""

RESULTS_MAX = 1000
RESULT_BYTES_MAX = 256 * 1024 * 1024
"""Of all results of a cell together; one of them has at most 16 MiB (the server's bound)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """A cell that has ended. In a notebook it shows itself; printed, it is its text.

    `status` is "ok", "error", "interrupted", "timed_out" or "kernel_died". An exception in the cell is in `error` and
    is raised only by `check`. With `state_lost` the kernel's variables are gone; `reason` says why. `exit_code` is that
    of a bash cell.
    """

    status: str
    stdout: str = ""
    stderr: str = ""
    results: Sequence[Result] = ()
    error: CellError | None = None
    execution_count: int | None = None
    duration_s: float = 0.0
    state_lost: bool = False
    reason: str = ""
    exit_code: int | None = None
    truncated: bool = False
    kernel: str = ""
    id: str = ""

    @property
    def ok(self) -> bool:
        """Whether the cell ran to its end without an exception."""
        return self.status == "ok"

    @property
    def value(self) -> Result | None:
        """The value of the cell's last expression; None where there is none."""
        return next((result for result in reversed(self.results) if result.is_value), None)

    @property
    def text(self) -> str | None:
        """The value of the cell's last expression as text; None where there is none."""
        return self.value.text if self.value is not None else None

    @property
    def pngs(self) -> list[bytes]:
        """The charts and other pictures, as PNG files."""
        return [png for result in self.results if (png := result.png) is not None]

    def check(self) -> Self:
        """This execution. Raises CellFailed unless it is `ok`."""
        if not self.ok:
            raise CellFailed(self)
        return self

    def __str__(self) -> str:
        parts = [self.stdout, self.stderr, *(f"{result}\n" for result in self.results)]
        if self.error is not None:
            parts.append(f"{self.error}\n")
        elif not self.ok:
            parts.append(f"{self._how_it_ended()}\n")
        return "".join(part if part.endswith("\n") else f"{part}\n" for part in parts if part).rstrip("\n")

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """For Jupyter: all of it, safe to show (see `display`)."""
        if len(self.results) == 1 and self.ok and not self.stdout and not self.stderr:
            return self.results[0]._repr_mimebundle_()
        return {"text/plain": str(self), "text/html": self._as_html()}, {}

    def _as_html(self) -> str:
        parts = [preformatted(self.stdout)] if self.stdout else []
        if self.stderr:
            parts.append(preformatted(self.stderr, colour=ERROR_COLOUR))
        parts += [result.as_html() for result in self.results]
        if self.error is not None:
            parts.append(preformatted(str(self.error), colour=ERROR_COLOUR))
        elif not self.ok:
            parts.append(f"<p><em>{html.escape(self._how_it_ended())}</em></p>")
        return "\n".join(parts)

    def _how_it_ended(self) -> str:
        said = f"cell {self.status}" + (f": {self.reason}" if self.reason else "")
        return said + (" (the kernel's variables are gone)" if self.state_lost else "")


class _Text:
    """The first `OUTPUT_BYTES_MAX` bytes of a stream."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.truncated = False

    def add(self, data: bytes) -> None:
        room = OUTPUT_BYTES_MAX - len(self.data)
        self.data += data[:room]
        self.truncated |= len(data) > room

    def text(self) -> str:
        return self.data.decode("utf-8", "replace")


class CellCollector:
    """Takes a cell's events and becomes its `Execution`."""

    def __init__(self) -> None:
        self._out, self._err = _Text(), _Text()
        self._results: list[Result] = []
        self._room = RESULT_BYTES_MAX
        self._error: CellError | None = None
        self._started: CellStarted | None = None
        self._ended: CellEnded | None = None
        self._clear_next = False
        self._truncated = False

    def add(self, event: CellEvent) -> None:
        """Take the next event."""
        match event:
            case OutputCleared():
                self._clear_next = event.wait
                if not event.wait:
                    self._clear()
            case Output() | Displayed():
                self._show(event)
            case DisplayUpdated():
                self._update(event.result)
            case CellError():
                self._error = event
            case CellStarted():
                self._started = event
            case CellEnded():
                self._ended = event
            case Gap():
                self._truncated = True

    def execution(self) -> Execution:
        """What came together."""
        started, ended = self._started, self._ended
        count = ended.execution_count if ended is not None else None
        return Execution(
            status=ended.status if ended is not None else "kernel_died",
            stdout=self._out.text(),
            stderr=self._err.text(),
            results=tuple(self._results),
            error=self._error,
            execution_count=count if count is not None else started.execution_count if started else None,
            duration_s=ended.duration_s if ended is not None else 0.0,
            state_lost=ended is not None and ended.state_lost,
            reason=ended.reason if ended is not None else "",
            exit_code=ended.exit_code if ended is not None else None,
            truncated=self._truncated or self._out.truncated or self._err.truncated,
            kernel=started.kernel if started is not None else "",
            id=started.execution if started is not None else "",
        )

    def _show(self, event: Output | Displayed) -> None:
        if self._clear_next:
            self._clear()
        if isinstance(event, Stdout):
            self._out.add(event.data)
        elif isinstance(event, Stderr):
            self._err.add(event.data)
        elif isinstance(event, Displayed):
            if len(self._results) == RESULTS_MAX:
                self._truncated = True
            elif self._fits(event.result):
                self._results.append(event.result)

    def _update(self, new: Result) -> None:
        """Every display of that id looks like the new one."""
        for index, old in enumerate(self._results):
            if old.display_id is not None and old.display_id == new.display_id and self._fits(new):
                self._room += _size(old)
                self._results[index] = new

    def _fits(self, result: Result) -> bool:
        size = _size(result)
        if size > self._room:
            self._truncated = True
            return False
        self._room -= size
        return True

    def _clear(self) -> None:
        self._clear_next = False
        self._out, self._err = _Text(), _Text()
        self._results.clear()
        self._room = RESULT_BYTES_MAX


def _size(result: Result) -> int:
    return sum(len(form) for form in result.data.values() if isinstance(form, str))


class CommandCollector:
    """Takes a process's events and becomes its `CommandResult`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)
        self._out, self._err = _Text(), _Text()
        self._started: Started | None = None
        self.exited: Exited | None = None

    def add(self, event: ProcessEvent) -> None:
        """Take the next event."""
        match event:
            case Stdout():
                self._out.add(event.data)
            case Stderr():
                self._err.add(event.data)
            case Gap():
                (self._err if event.stream == "stderr" else self._out).truncated = True
            case Started():
                self._started = event
            case Exited():
                self.exited = event

    def result(self) -> CommandResult:
        """What came together so far; the exit code is -1 while the process runs."""
        exited, started = self.exited, self._started
        return CommandResult(
            stdout_bytes=bytes(self._out.data),
            stderr_bytes=bytes(self._err.data),
            exit_code=exited.exit_code if exited is not None else -1,
            duration_s=exited.duration_s if exited is not None else 0.0,
            started_at=started.started_at if started is not None else None,
            stdout_truncated=self._out.truncated,
            stderr_truncated=self._err.truncated,
            command=self._command,
            signal=exited.signal if exited is not None else None,
            timed_out=exited.timed_out if exited is not None else False,
        )
