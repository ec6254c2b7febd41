"""Keeps one link to the master up: finds, connects, prepares, listens to its pulse, and begins again.

Calls never wait for longer than an outage's first moments; after that they fail at once until the
server is back.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
import time
from abc import ABC, abstractmethod

from agentcube.errors import AgentCubeError, StoreFailed
from agentcube.stores.redis.address import Address
from agentcube.stores.redis.clock import StoreClock
from agentcube.stores.redis.finder import Credentials, Finder
from agentcube.stores.redis.link import Link, LinkLost, Reply, ReplyError, accepted, in_words, said
from agentcube.stores.redis.settings import RedisSettings

_log = logging.getLogger(__name__)

_PAUSE_FIRST_S = 0.05
_PAUSE_MAX_S = 1.0  # a server that is back is noticed within this
_OLDEST = (6, 2)  # GETs of many scores (ZMSCORE) and ZADD GT, beside RESP3; Valkey began at 7.2
_TURNS = 3  # of the event loop, which after a stall of ours runs timers before it reads what has come
_MASTER_EVERY = 3  # heartbeats between two questions to Sentinels whether the master is still the same


class Owner(ABC):
    """Whom a connection's links belong to."""

    @abstractmethod
    async def prepare(self, link: Link) -> None:
        """Make a fresh link ready before anybody uses it. Raises StoreFailed for a server that will not do."""

    def hear(self, push: list[Reply]) -> None:  # noqa: B027  nothing, unless it asked for pushes
        """A push came in."""

    def up(self) -> None:  # noqa: B027  nothing, unless something depends on it
        """The prepared link is in use from now on."""

    def down(self) -> None:  # noqa: B027  the same
        """The link in use is lost."""


class Connection:
    """One master, by way of one link at a time. `clock` is set by its answers.

    `patience_s`: how long a command that waits for others may hold the link up.
    """

    def __init__(
        self,
        address: Address,
        settings: RedisSettings,
        finder: Finder,
        credentials: Credentials,
        *,
        tls: ssl.SSLContext | None,
        clock: StoreClock,
        owner: Owner,
        patience_s: float,
    ) -> None:
        self._address = address
        self._settings = settings
        self._finder = finder
        self._credentials = credentials
        self._tls = tls
        self._clock = clock
        self._owner = owner
        self._answer_timeout_s = settings.answer_timeout_s + patience_s
        self._link: Link | None = None
        self._up = asyncio.Event()
        self._why = "the session store is not connected"
        self._down_since = 0.0
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and stay connected from now on. Raises StoreFailed, naming the server, when it cannot."""
        try:
            link = await self._attempt()
        except StoreFailed as exc:
            raise StoreFailed(f"the session store at {self._address} cannot be used: {exc.detail}") from exc
        self._take(link)
        self._keeper = asyncio.create_task(self._keep(link), name="redis connection")

    async def close(self) -> None:
        """Hang up; what was called before is still sent. Later calls raise StoreFailed."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        self._why, self._down_since = "the session store is closed", float("-inf")
        self._up.clear()
        if self._link is not None:
            self._link.close()
            self._link = None

    async def link(self) -> Link:
        """The link, once there is one. Raises StoreFailed when the server has been lost for too long."""
        if self._link is None:
            patience = self._down_since + self._settings.outage_wait_s - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(max(patience, 0.0)):
                    await self._up.wait()
            except TimeoutError:
                raise StoreFailed(self._why) from None
            if self._link is None:  # lost again, before we came to run
                raise StoreFailed(self._why)
        return self._link

    async def _keep(self, link: Link) -> None:
        try:
            while True:
                await self._listen(link)
                self._lose(link.why)
                link = await self._again()
                self._take(link)
        except asyncio.CancelledError:
            raise
        except Exception:  # a task's top: calls must fail, not hang
            _log.exception("redis connection ended")
            self._lose("the session store's connection failed; the log says why")
            if self._link is not None:
                self._link.abort(self._why)

    def _take(self, link: Link) -> None:
        self._link = link
        self._up.set()
        self._owner.up()

    def _lose(self, why: str) -> None:
        _log.warning("redis lost: %s (%s)", self._address, why)
        self._link = None
        self._up.clear()
        self._why = f"{why}; it is being looked for"
        self._down_since = asyncio.get_running_loop().time()
        self._owner.down()

    async def _again(self) -> Link:
        """A fresh link, however long that takes."""
        pause_s, told = _PAUSE_FIRST_S, ""
        while True:
            try:
                link = await self._attempt()
            except AgentCubeError as exc:
                if exc.detail != told:
                    _log.warning("redis not reached: %s (%s)", self._address, exc.detail)
                    told = exc.detail
                await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  spreads replicas' attempts
                pause_s = min(pause_s * 2, _PAUSE_MAX_S)
            else:
                _log.warning("redis is back: %s", self._address)
                return link

    async def _attempt(self) -> Link:
        """Find, connect and prepare once. Raises StoreFailed."""
        link: Link | None = None
        ready = False
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                place = await self._finder.find()
                link = await Link.open(
                    place, on_push=self._owner.hear, pending_max=self._settings.pending_max, tls=self._tls
                )
                await self._greet(link)
                await self._owner.prepare(link)
        except TimeoutError:
            raise StoreFailed("it did not answer in time") from None
        except (OSError, LinkLost) as exc:
            raise StoreFailed(in_words(exc)) from exc
        else:
            ready = True
            return link
        finally:
            if link is not None and not ready:
                link.abort("not usable")

    async def _greet(self, link: Link) -> None:
        """Say who we are; only a master that is new enough will do."""
        words = self._credentials.words()
        hello = await link.call("HELLO", "3", *(("AUTH", *words) if words else ()), "SETNAME", "agentcube")
        if isinstance(hello, ReplyError):
            raise StoreFailed(_refusal(str(hello), asked_for_password=not words))
        try:
            version = tuple(int(part) for part in hello[b"version"].split(b".")[:2])
            role = hello[b"role"]
        except (KeyError, TypeError, ValueError):
            raise StoreFailed("it does not answer as Redis or Valkey do") from None
        if version < _OLDEST:
            raise StoreFailed(
                f"it is version {'.'.join(map(str, version))}; Redis 6.2 or newer is needed, or Valkey"
            )
        if role != b"master":
            raise StoreFailed("it is a replica; give the master's address, or let Sentinels find it")
        if self._address.db:
            await said(link, "SELECT", self._address.db)
        sent = time.monotonic()
        self._set_clock(await said(link, "TIME"), sent)

    async def _listen(self, link: Link) -> None:
        """Return once the link is lost; a server that does not answer is taken for lost."""
        beats = 0
        while True:
            try:
                async with asyncio.timeout(self._settings.heartbeat_s):
                    await link.lost.wait()
                return
            except TimeoutError:
                pass
            await self._feel_pulse(link)
            beats += 1
            if self._finder.may_move and beats % _MASTER_EVERY == 0:
                await self._check_master(link)

    async def _feel_pulse(self, link: Link) -> None:
        """Ask for the time; a link on which that is not answered is given up, and with it every call."""
        sent = time.monotonic()
        try:
            answer = link.call("TIME", urgent=True)
        except LinkLost:
            return
        try:
            await asyncio.wait({answer}, timeout=self._answer_timeout_s)
            for _ in range(_TURNS):
                if not answer.done():
                    await asyncio.sleep(0)
            if answer.done():
                self._set_clock(accepted("TIME", answer.result()), sent)
            else:
                link.abort("the session store does not answer")
        except (LinkLost, StoreFailed) as exc:
            link.abort(str(exc))
        finally:
            answer.cancel()

    def _set_clock(self, time_said: Reply, sent: float) -> None:
        seconds, microseconds = time_said
        self._clock.set(int(seconds) + int(microseconds) / 1e6, sent=sent, received=time.monotonic())

    async def _check_master(self, link: Link) -> None:
        """A master that was replaced while it was cut off from the others still answers us."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                place = await self._finder.find()
        except (TimeoutError, AgentCubeError):
            return  # without Sentinels, the one we have is the best we know
        if place != link.place:
            _log.warning("redis: the master is now %s, not %s", place, link.place)
            link.retire("the session store's master has changed", within_s=self._answer_timeout_s)


def _refusal(answer: str, *, asked_for_password: bool) -> str:
    if answer.startswith("NOAUTH"):
        return "it asks for a password; put it into a file and name that in AGENTCUBE_REDIS_PASSWORD_FILE"
    if answer.startswith("WRONGPASS"):
        return "user or password are wrong"
    if answer.startswith("ERR unknown command"):
        return "it is older than Redis 6.2"
    return answer
