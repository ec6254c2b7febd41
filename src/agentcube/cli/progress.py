"""How far a large transfer is, on standard error, when that is a terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

NAME_WIDTH, BAR_WIDTH = 24, 20
LARGE_BYTES = 8 * 1024 * 1024  # less is there before one could read a bar


class Meter:
    """Shows a transfer for the length of a block. Is called with the bytes done and the whole, as the SDK does it."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._wanted = sys.stderr is not None and sys.stderr.isatty()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __call__(self, done: int, total: int | None) -> None:
        """So far."""
        if self._bar is None and self._wanted and max(total or 0, done) >= LARGE_BYTES:
            self._bar = _shown(self._what, total)
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, completed=done, total=total)

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()


def _shown(what: str, total: int | None) -> tuple[Progress, TaskID]:
    from rich.console import Console  # a fifth of the time that this program takes to start
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.table import Column

    whole = Column(no_wrap=True)  # a line that breaks is drawn over by the next one
    progress = Progress(
        TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=NAME_WIDTH)),
        BarColumn(bar_width=BAR_WIDTH, table_column=whole),
        DownloadColumn(binary_units=True, table_column=whole),
        TransferSpeedColumn(table_column=whole),
        TimeRemainingColumn(table_column=whole),
        console=Console(stderr=True),
    )
    task = progress.add_task(escape(what), total=total)
    progress.start()
    return progress, task
