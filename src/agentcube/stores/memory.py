"""The store that forgets everything with its process: for tests, demos and throwaway machines."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

from agentcube.model.ids import SessionId
from agentcube.stores.embedded import EmbeddedStore
from agentcube.stores.tables import Operation

R = TypeVar("R")


class MemoryStore(EmbeddedStore):
    """A `ports.store.Store` in memory. A change is as durable as it gets the moment it is made."""

    async def _commit(self, operation: Operation[R]) -> R:
        outcome = operation(self._live)
        self._publish(outcome.changes)
        return outcome.answer

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        self._live.touch(activity)

    async def check(self) -> None:
        """Always return: memory can be read and written."""
