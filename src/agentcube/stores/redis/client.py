"""Calls on a server that may move, restart or refuse: what is safe to repeat is, the rest is StoreFailed.

An answer that says the server did not even begin (loading, no longer master, script unknown) is no
outcome; the call is made again while an outage's first moments last. A link lost in between leaves
open whether a change was made: that is for the caller to know.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from agentcube.errors import StoreFailed
from agentcube.stores.redis import scripts
from agentcube.stores.redis.connection import Connection
from agentcube.stores.redis.link import Command, Link, LinkLost, Reply, ReplyError, accepted
from agentcube.stores.redis.scripts import Script

R = TypeVar("R")

_log = logging.getLogger(__name__)

_NOT_NOW = frozenset({"LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "BUSY"})
_NOT_HERE = frozenset({"MOVED", "ASK", "READONLY"})
_PAUSE_S = 0.02
_CODE = re.compile(r"[A-Z]{2,}")
_WITHIN = re.compile(r"-(OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN|MOVED|NOPERM)\b")
"""Until Redis 7 an error inside a script comes wrapped in the script's own."""

_REASONS = {
    "OOM": "the session store's memory is full: end sessions, or raise its maxmemory",
    "MISCONF": "the session store cannot write to its disk; see its log",
    "NOREPLICAS": "the session store has fewer replicas than it is told to need",
    "NOPERM": "the session store's user may not do this; docs/how-to/use-redis.md has the ACL rule",
    "NOAUTH": "the session store wants a password again",
}


async def load_scripts(link: Link) -> None:
    """Have the server know every script. Raises StoreFailed, LinkLost."""
    for reply in await link.calls([("SCRIPT", "LOAD", script.text) for script in scripts.ALL]):
        accepted("SCRIPT LOAD", reply)


class Client:
    """Scripts and commands on whatever link there is."""

    def __init__(self, connection: Connection, *, base: str, patience_s: float) -> None:
        self._connection = connection
        self._base = base
        self._patience_s = patience_s

    async def run(self, script: Script, *arguments: str | bytes | int) -> Reply:
        """What a script answered. Raises StoreFailed."""
        command = self.evaluation(script, *arguments)
        return await self._until_done(lambda link: link.call(*command), _first_error)

    async def ask(self, *command: str | bytes | int) -> Reply:
        """What a command answered that may be made twice. Raises StoreFailed."""
        return (await self.ask_all(command))[0]

    async def ask_all(self, *commands: Command) -> list[Reply]:
        """The same for several at once."""
        return await self._until_done(lambda link: link.calls(commands), _first_of_many, repeatable=True)

    def evaluation(self, script: Script, *arguments: str | bytes | int) -> Command:
        """A script's call as a command for `ask_all`."""
        return ("EVALSHA", script.sha, 1, self._base, *arguments)

    async def _until_done(
        self,
        call: Callable[[Link], Awaitable[R]],
        error_in: Callable[[R], ReplyError | None],
        *,
        repeatable: bool = False,
    ) -> R:
        loop = asyncio.get_running_loop()
        until: float | None = None
        while True:
            link = await self._connection.link()
            sent = False
            try:
                answer = call(link)
                sent = True
                reply = await answer
            except LinkLost as lost:
                if sent and not repeatable:
                    raise StoreFailed(f"{lost}; whether the change was made is not known") from None
                why = str(lost)
            else:
                error = error_in(reply)
                if error is None:
                    return reply
                why = await self._cope(link, str(error))
            until = until or loop.time() + self._patience_s
            if loop.time() > until:
                raise StoreFailed(why)
            await asyncio.sleep(_PAUSE_S)

    async def _cope(self, link: Link, said: str) -> str:
        """Why a call has to be made again. Raises StoreFailed when that would be of no use."""
        code = _code(said)
        if code == "NOSCRIPT":
            try:
                await load_scripts(link)
            except LinkLost as lost:
                return str(lost)
            return "the session store forgets its scripts"
        if code in _NOT_HERE:
            why = f"the server is not the master any more ({code})"
            link.retire(why, within_s=self._patience_s)  # the others under way hear the same from it
            return "the session store's master has moved"
        if code in _NOT_NOW:
            return f"the session store is not ready ({code})"
        _log.error("redis refused a call: %s", said)
        raise StoreFailed(_REASONS.get(code, "the session store refused a call; the log says why"))


def _code(said: str) -> str:
    wrapped = _WITHIN.search(said) if said.startswith("ERR ") else None
    found = _CODE.match(said)
    return wrapped[1] if wrapped else found[0] if found else ""


def _first_error(reply: Reply) -> ReplyError | None:
    return reply if isinstance(reply, ReplyError) else None


def _first_of_many(replies: Sequence[Reply]) -> ReplyError | None:
    return next((r for r in replies if isinstance(r, ReplyError)), None)
