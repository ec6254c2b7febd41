"""Printing: tables for people, JSON for programs, bytes as they are, errors in one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, BinaryIO

PROGRAM = "agentcube"


class Output(StrEnum):
    """Forms of output."""

    TABLE = "table"
    JSON = "json"


def plain(text: str) -> str:
    """Text from elsewhere, fit for a terminal's line: no control characters, no line breaks."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def line(text: str) -> None:
    """A line on standard output."""
    sys.stdout.write(f"{text}\n")


def notice(text: str, *, end: str = "\n") -> None:
    """A line on standard error, marked as ours and not the program's."""
    sys.stderr.write(f"{PROGRAM}: {plain(text)}{end}")
    sys.stderr.flush()


def as_json(value: Any) -> None:
    """A JSON document on standard output."""
    line(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Aligned columns, never cut, so that what is shown can be copied."""
    cells = [list(columns), *([plain(_text(value)) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        line("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _text(value: object) -> str:
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return "-" if value is None or value == "" else str(value)


def write_bytes(stdout: bytes, stderr: bytes) -> None:
    """A program's output, unchanged, on the same two streams."""
    for stream, data in ((sys.stdout, stdout), (sys.stderr, stderr)):
        stream.flush()
        write_all(stream.buffer, data)
        stream.buffer.flush()


def write_all(stream: BinaryIO, data: bytes) -> None:
    """All of the data. A buffered stream whose reader goes away half-way reports a short write, not an error."""
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
