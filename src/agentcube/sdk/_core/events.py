"""What happens to a session and inside it, as typed events: of processes, of cells, of files. Frozen values, no I/O.

Match on the class: `match event: case Stdout(): …`. Events that a newer server adds are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

from agentcube.sdk._core.display import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A piece of output. Of a process `data` is exact to the byte and `offset` counts from the program's first byte.

    `text` is `data` as UTF-8, decoded across pieces: a character that was cut stands whole in the later piece.
    """

    text: str
    data: bytes
    offset: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stdout(Output):
    """Output on standard output; of a terminal, everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stderr(Output):
    """Output on standard error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Output that nobody can have any more: it was overwritten before it was read.

    Of a process, bytes `start` to `end` of `stream`; of a cell, events by number, and `stream` is "events".
    """

    stream: str
    start: int
    end: int


# --- sessions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseChanged:
    """The session came to this phase; "Deleted" is the last event. `seq` counts its changes, from 1.

    `missed`: what happened right before is not on record any more.
    """

    phase: str
    seq: int
    reason: str = ""
    message: str = ""
    at: datetime | None = None
    missed: bool = False


# --- processes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The process runs, or has been tried to be run: `pid` None is a program that could not be executed."""

    id: str
    pid: int | None
    started_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The process has ended; the last event. `exit_code` as a shell has it: 128+n for signal n, 124 for the timeout."""

    exit_code: int
    signal: str | None = None
    timed_out: bool = False
    duration_s: float = 0.0
    error: str = ""


# --- cells ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class CellStarted:
    """The kernel executes the cell."""

    execution: str
    kernel: str
    execution_count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Displayed:
    """Something was displayed, or is the value of the cell's last expression (then `result.is_value`)."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class DisplayUpdated:
    """What was displayed as `result.display_id` now looks like this."""

    result: Result


@dataclass(frozen=True, slots=True, kw_only=True)
class CellError:
    """The exception that ended the cell. `traceback` are lines of plain text, as IPython words them."""

    name: str
    value: str
    traceback: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join(self.traceback) or f"{self.name}: {self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCleared:
    """What the cell has shown so far is to be taken away; with `wait`, once something new is shown."""

    wait: bool = False


CellStatus: TypeAlias = Literal["ok", "error", "interrupted", "timed_out", "kernel_died"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellEnded:
    """The cell has ended; the last event. With `state_lost` the kernel's variables are gone.

    `exit_code` is that of a bash cell.
    """

    status: CellStatus | str
    execution_count: int | None = None
    duration_s: float = 0.0
    state_lost: bool = False
    reason: str = ""
    exit_code: int | None = None


# --- files ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChanged:
    """Something happened to `path`; a rename's `path` is the new name, `from_path` the old one where it is known.

    Of the other kinds, "ready" comes first, and from then on everything is seen; "overflow" says that events were
    lost, so look at what is below `path` again; "end" comes last, when what was watched is gone.
    """

    kind: Literal["ready", "create", "modify", "delete", "rename", "overflow", "end"] | str
    path: str = ""
    is_dir: bool = False
    from_path: str | None = None


ProcessEvent: TypeAlias = Started | Stdout | Stderr | Gap | Exited
CellEvent: TypeAlias = (
    CellStarted | Stdout | Stderr | Displayed | DisplayUpdated | CellError | OutputCleared | Gap | CellEnded
)
