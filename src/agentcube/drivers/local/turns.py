"""What changes one sandbox takes turns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from agentcube.model.ids import SandboxId


class Turns:
    """A lock for each sandbox, kept as long as somebody has it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[SandboxId, tuple[anyio.Lock, int]] = {}

    @asynccontextmanager
    async def of(self, id: SandboxId) -> AsyncIterator[None]:
        """Alone with the sandbox."""
        lock, users = self._locks.get(id, (anyio.Lock(), 0))
        self._locks[id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(id)
            if users > 1:
                self._locks[id] = (lock, users - 1)
