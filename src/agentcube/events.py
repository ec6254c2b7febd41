"""What happens to a session and inside it, as typed events: what iterating over a process, a cell or a watch gives."""

from __future__ import annotations

from agentcube.sdk._core.events import (
    CellEnded,
    CellError,
    CellEvent,
    CellStarted,
    CellStatus,
    Displayed,
    DisplayUpdated,
    Exited,
    FileChanged,
    Gap,
    Output,
    OutputCleared,
    PhaseChanged,
    ProcessEvent,
    Started,
    Stderr,
    Stdout,
)

__all__ = [
    "CellEnded",
    "CellError",
    "CellEvent",
    "CellStarted",
    "CellStatus",
    "DisplayUpdated",
    "Displayed",
    "Exited",
    "FileChanged",
    "Gap",
    "Output",
    "OutputCleared",
    "PhaseChanged",
    "ProcessEvent",
    "Started",
    "Stderr",
    "Stdout",
]
