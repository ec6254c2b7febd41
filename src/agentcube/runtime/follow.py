"""Following a store's changes for as long as the process lives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import structlog

from agentcube.errors import AgentCubeError
from agentcube.model.ids import SessionId
from agentcube.ports.store import SessionTable

log = structlog.get_logger(__name__)

_RETRY_S = 1.0


async def follow(store: SessionTable) -> AsyncIterator[SessionId | None]:
    """Ids of sessions that changed, for ever. None, first of all too: any may have changed unheard."""
    failing = False
    while True:
        try:
            changes = store.changes()
            yield None
            async for id in changes:
                failing = False
                yield id
        except AgentCubeError as exc:
            if not failing:
                log.warning("changes of sessions not heard", error=exc.code, detail=exc.detail)
            failing = True
        await asyncio.sleep(_RETRY_S)
