"""New sessions that replicas must have before they are answered: WAIT, on a link of its own.

WAIT holds a whole connection up, so the link that everything else goes by must not know it. Here, all
scripts that were answered in one turn of the event loop share one WAIT.
"""

from __future__ import annotations

import asyncio
import logging

from agentcube.errors import StoreFailed
from agentcube.stores.redis.client import Client, load_scripts
from agentcube.stores.redis.connection import Owner
from agentcube.stores.redis.facts import info_fields
from agentcube.stores.redis.link import Link, Reply
from agentcube.stores.redis.scripts import Script

_log = logging.getLogger(__name__)

_LOOK_S = 1.0  # between two questions how many replicas there are, while there are too few


class ReplicatedWrites(Owner):
    """Runs scripts, then waits for `replicas` replicas to have the change, `patience_s` at most.

    While there are fewer replicas it does not wait. A wait in vain is a warning, not an error: the
    change is made, and its server is there. Owns the link that it waits on.
    """

    def __init__(self, *, replicas: int, patience_s: float) -> None:
        self._client: Client | None = None
        self._replicas = replicas
        self._patience_ms = max(1, round(patience_s * 1000))
        self._link = 0  # counts them
        self._shared: asyncio.Task[None] | None = None
        self._lacking = True  # whether there were too few replicas when we last knew
        self._look_at = 0.0
        self._complained = False

    def use(self, client: Client) -> None:
        """Go by this client, whose links are ours."""
        self._client = client

    async def prepare(self, link: Link) -> None:
        await load_scripts(link)

    def up(self) -> None:
        """It may lead to a server without replicas: ask before waiting."""
        self._link += 1
        self._lacking, self._look_at = True, 0.0

    async def run(self, script: Script, *arguments: str | bytes | int) -> Reply:
        """What the script answered. Raises StoreFailed, also when the server is lost before replicas answered."""
        assert self._client is not None
        reply = await self._client.run(script, *arguments)
        if self._shared is None:
            self._shared = asyncio.create_task(self._wait(self._client, self._link), name="redis WAIT")
            self._shared.add_done_callback(_heard)
            asyncio.get_running_loop().call_soon(self._part)
        waiting = self._shared
        await asyncio.wait({waiting})
        match waiting.exception():
            case None:
                return reply
            case StoreFailed() as lost:
                raise StoreFailed(f"{lost.detail}; whether they have the change is not known")
            case error:
                raise error

    def _part(self) -> None:
        """Whoever comes now was answered after this WAIT was sent, and needs the next."""
        self._shared = None

    async def _wait(self, client: Client, link: int) -> None:
        if self._lacking and not await self._enough(client):
            return
        had = await client.ask("WAIT", self._replicas, self._patience_ms)
        if self._link != link:  # it was answered by a server that knows nothing of the change
            raise StoreFailed("the session store was lost while replicas were waited for")
        self._lacking = had < self._replicas and not await self._enough(client)
        if had >= self._replicas:
            self._complained = False
        elif not self._complained:
            self._complained = True
            _log.warning(
                "new sessions are not on %d replicas within %d ms", self._replicas, self._patience_ms
            )

    async def _enough(self, client: Client) -> bool:
        """Whether there are as many replicas as we want; asked once a second at most."""
        now = asyncio.get_running_loop().time()
        if now < self._look_at:
            return False
        info = info_fields(await client.ask("INFO", "replication"))
        enough = int(info["connected_slaves"]) >= self._replicas
        if not enough:
            self._look_at = now + _LOOK_S
            _log.info("fewer than %d replicas: new sessions do not wait for them", self._replicas)
        return enough


def _heard(waiting: asyncio.Task[None]) -> None:
    """Its error is everybody's who waited; when nobody does any more, it is nobody's."""
    if not waiting.cancelled():
        waiting.exception()
