"""Tokens that we sign, kept until well before they expire. A signature costs more than ten requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Executor

import structlog

from agentcube.ports.tokens import TOKEN_LIFETIME
from agentcube.router.flights import Flights
from agentcube.router.memo import Memo

log = structlog.get_logger(__name__)

_RENEW_S = TOKEN_LIFETIME.total_seconds() * 0.5  # from here on, sign anew beside the request
_AGAIN_S = 10.0  # and if that fails, again after this
_END_S = (
    TOKEN_LIFETIME.total_seconds() * 0.8
)  # from here on it is not used; leaves 60 s for clocks that differ
_TOKENS = 16_384  # sessions used within a token's life; about 1 KB each


class Tokens:
    """Authorization lines, each with its CRLF, by key. Signing happens in a thread, once per key at a time."""

    def __init__(self, executor: Executor, now: Callable[[], float] = time.time) -> None:
        self._executor = executor
        self._now = now  # wall time, as the tokens have
        self._lines: Memo[Hashable, tuple[bytes, float, float]] = Memo(_TOKENS)
        self._signing: Flights[bytes] = Flights()
        self._renewals: set[asyncio.Task[bytes]] = set()

    def fresh(self, key: Hashable) -> bytes | None:
        """The header line for `key` if there is one that need not be thought about."""
        found = self._lines.find(key)
        if found is not None and found[1] <= self._now() < found[2]:
            return found[0]
        return None

    def find(self, key: Hashable, sign: Callable[[], str]) -> bytes | None:
        """The header line for `key` if there is one that is good for long enough; renewed when due."""
        found = self._lines.find(key)
        if found is None:
            return None
        line, signed_at, renew_at = found
        now = self._now()
        if not signed_at <= now < signed_at + _END_S:  # earlier than signed: the clock was set back
            return None
        if now >= renew_at:
            self._lines.put(key, (line, signed_at, now + _AGAIN_S))
            self._renew(key, sign)
        return line

    async def get(self, key: Hashable, sign: Callable[[], str]) -> bytes:
        """The header line for `key`, signed now if need be."""
        line = self.find(key, sign)
        if line is None:
            line = await self._signing.join(key, lambda: self._sign(key, sign))
        return line

    async def _sign(self, key: Hashable, sign: Callable[[], str]) -> bytes:
        signed_at = self._now()
        token = await asyncio.get_running_loop().run_in_executor(self._executor, sign)
        line = b"Authorization: Bearer %b\r\n" % token.encode("ascii")
        self._lines.put(key, (line, signed_at, signed_at + _RENEW_S))
        return line

    def _renew(self, key: Hashable, sign: Callable[[], str]) -> None:
        task = asyncio.get_running_loop().create_task(
            self._signing.join(key, lambda: self._sign(key, sign)), name="renew token"
        )
        self._renewals.add(task)
        task.add_done_callback(self._renewed)

    def _renewed(self, task: asyncio.Task[bytes]) -> None:
        self._renewals.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("token not renewed", error=type(error).__name__)

    async def close(self) -> None:
        """End what is being signed."""
        await self._signing.cancel()
