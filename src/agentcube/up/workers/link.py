"""Messages between the main process and a Router worker: JSON, a line each, on a socket pair of theirs alone.

The worker calls: `{"id": n, "call": name, …}`, and hears `{"id": n, "value": …}` or `{"id": n, "error": code,
"detail": …, "context": …}`; `{"cancel": n}` takes a call back. Unasked it hears `{"session": record}`
(made or changed), `{"gone": id}`, `{"known": [ids]}` (all others are gone, or cannot be known now), and
`{"drain": true}`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from agentcube.errors import BY_CODE, AgentCubeError

LINE_BYTES_MAX = 8 << 20
"""Longest message: a record is some kilobytes; a hundred thousand ids are four megabytes."""

UNSENT_BYTES_MAX = 64 << 20
"""What may wait for a worker that does not read; above it the worker is of no use and is ended."""

Message = Mapping[str, Any]


class LinkLost(Exception):
    """The other process is gone, or does not keep up."""


class Link:
    """One end. Closed by `close`, or when reading or writing fails."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, message: Message) -> None:
        """Send, without waiting. Raises LinkLost."""
        transport = self._writer.transport
        if transport.is_closing() or transport.get_write_buffer_size() > UNSENT_BYTES_MAX:
            raise LinkLost
        self._writer.write(json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n")

    async def receive(self) -> dict[str, Any]:
        """The next message. Raises LinkLost."""
        try:
            line = await self._reader.readline()
        except (OSError, ValueError) as exc:  # ValueError: longer than the limit
            raise LinkLost from exc
        if not line.endswith(b"\n"):
            raise LinkLost
        message: dict[str, Any] = json.loads(line)
        return message

    async def flush(self) -> None:
        """Return when little is unsent. Raises LinkLost."""
        try:
            await self._writer.drain()
        except OSError as exc:
            raise LinkLost from exc

    def close(self) -> None:
        """Close. Idempotent."""
        with suppress(OSError, RuntimeError):
            self._writer.close()


def error_message(id: int, error: AgentCubeError) -> Message:
    """How an error travels."""
    return {"id": id, "error": error.code, "detail": error.detail, "context": error.context}


def error_of(message: Message) -> AgentCubeError:
    """The error that travelled, in its class."""
    kind = BY_CODE.get(message["error"], AgentCubeError)
    return kind(message["detail"], **message["context"])
