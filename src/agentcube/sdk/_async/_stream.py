"""Follows a stream of events over as many connections as it takes. What nobody reads any more it ends on the server."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType
from typing import Generic, Self, TypeVar

from agentcube.errors import AgentCubeError
from agentcube.sdk._async._connection import AsyncConnection, log
from agentcube.sdk._async._primitives import sleep, whatever_happens
from agentcube.sdk._core.errors import ConnectFailed, ConnectionLost, TimedOut, UnexpectedAnswer
from agentcube.sdk._core.processes import GRACE_S
from agentcube.sdk._core.retry import Patience
from agentcube.sdk._core.tracks import SILENCE_S, Track

CANCEL_WITHIN_S = 10.0
PING_S = 15.0
LASTED_S = 1.0  # a connection that was up for this long was one, though nothing new came on it
MEDIA_TYPE = "application/x-ndjson"

E = TypeVar("E")


class AsyncEventStream(Generic[E]):
    """Typed events, as they happen. Iterate over it; nothing is sent before that.

    A connection that is lost is made again, and the events go on where they stopped: none is missing, none
    comes twice. Reading ends with the last event. Whoever stops before (by leaving the block, by `aclose`, by
    an exception, by being cancelled) ends on the server what the stream is of: the cell is interrupted, the
    process killed. After an error of the connection, iterating again tries again.
    """

    def __init__(self, connection: AsyncConnection, track: Track[E]) -> None:
        self._follower = _AsyncFollower(connection, track)
        self._events: AsyncGenerator[E, None] | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> E:
        if self._closed or self._follower.track.ended:
            raise StopAsyncIteration
        if self._events is None:
            self._events = self._follower.events()
        try:
            return await anext(self._events)
        except AgentCubeError:
            self._events = None  # the track knows where to go on
            raise

    async def aclose(self) -> None:
        """Read no more. What the stream is of is ended, if it has not by itself. Idempotent."""
        if self._closed:
            return
        self._closed = True
        events, self._events = self._events, None
        if events is not None:
            await events.aclose()
        else:
            await self._follower.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def expect_end(self, within_s: float | None) -> None:
        """Raise TimedOut from an iteration that begins after `within_s`, without ending anything; None: never."""
        self._follower.deadline = None if within_s is None else time.monotonic() + within_s


class _AsyncFollower(Generic[E]):
    """What a stream of events knows. It does not know the stream, so that one that is dropped ends at once."""

    def __init__(self, connection: AsyncConnection, track: Track[E]) -> None:
        self.track = track
        self.deadline: float | None = None
        self._connection = connection
        self._patience = Patience(GRACE_S)
        self._answered_at: float | None = None

    async def events(self) -> AsyncGenerator[E, None]:
        """The events that have not been taken."""
        track = self.track
        try:
            while not track.ended:
                before, failure = track.progress, None
                try:
                    request = track.request(silence_s=self._silence_s())
                    async with self._connection.stream(request, sending=track.mark_sent) as response:
                        self._begin(response.headers.get("content-type", ""))
                        body = self._connection.body(response, request, chunk_bytes=None)
                        async with aclosing(body) as pieces:
                            async for piece in pieces:
                                for event in track.take(piece):
                                    yield event
                                if self._asks_anew(request.timeout_s):
                                    break
                            else:
                                track.answered()
                except AgentCubeError as exc:
                    failure = exc
                await sleep(self._delay(failure, before))
        except AgentCubeError:
            track.sent = track.identified  # what is not known to run is not looked for
            raise
        except BaseException:
            await self.cancel()
            raise

    async def cancel(self) -> None:
        """End on the server what the stream is of, if it has begun and not ended. Failures are logged.

        When the client is closed, that has ended with its connections.
        """
        track = self.track
        if track.owned and track.sent and not track.ended and not self._connection.is_closed:
            await whatever_happens(self._cancel, f"cancel: {track.what}", within_s=CANCEL_WITHIN_S)

    def _silence_s(self) -> float:
        """How long the next answer may be silent: until the deadline, if there is one."""
        if self.deadline is None:
            return SILENCE_S
        return min(SILENCE_S, max(0.001, self.deadline - time.monotonic()))

    def _asks_anew(self, timeout_s: float) -> bool:
        """Whether this answer, whose pings keep it from timing out, would go on beyond the deadline."""
        if self.deadline is None:
            return False
        left_s = self.deadline - time.monotonic()
        return left_s <= 0 or (left_s < PING_S and timeout_s > left_s + PING_S)

    def _begin(self, media_type: str) -> None:
        """An answer begins."""
        if media_type.partition(";")[0].strip().lower() != MEDIA_TYPE:
            said = media_type or "of no type"
            raise UnexpectedAnswer(f"{self.track.what}: the answer is no stream of events, but {said}")
        self.track.restart()
        self._answered_at = time.monotonic()

    def _delay(self, failure: AgentCubeError | None, before: int) -> float:
        """Seconds before the next request. Raises what keeps it from being sent."""
        track, now = self.track, time.monotonic()
        if track.ended:
            return 0.0
        if failure is not None and not self._passes(failure):
            raise failure
        if self.deadline is not None and now >= self.deadline:
            raise TimedOut(f"{track.what}: it has not ended in the given time, and goes on")
        answered_at, self._answered_at = self._answered_at, None
        if track.progress != before or (answered_at is not None and now - answered_at >= LASTED_S):
            self._patience.renew()
        delay = self._patience.delay(now)
        if delay is None:
            raise failure or ConnectionLost(f"{track.what}: every connection ended before the last event")
        log.debug("%s: %s; going on in %.2f s", track.what, failure or "the answer ended", delay)
        return delay

    def _passes(self, failure: AgentCubeError) -> bool:
        """Whether another connection may bring what this one did not."""
        if isinstance(failure, ConnectFailed):
            return self.track.sent  # else nothing has begun, and whoever asked shall know at once
        if isinstance(failure, ConnectionLost | TimedOut):
            return True
        return self.track.identified and failure.retryable

    async def _cancel(self) -> None:
        track = self.track
        if not track.identified:
            await self._identify()
        request = track.cancellation()
        if request is not None:
            await self._connection.send(
                request.waiting(CANCEL_WITHIN_S), accept=lambda r: r.is_success or r.status_code in (404, 409)
            )

    async def _identify(self) -> None:
        """Learn what the request began whose answer was not awaited: it carries a key, so asking again says it."""
        track = self.track
        request = track.request(silence_s=CANCEL_WITHIN_S)
        async with self._connection.stream(request) as response:
            track.restart()
            async with aclosing(self._connection.body(response, request, chunk_bytes=None)) as pieces:
                async for piece in pieces:
                    for _ in track.take(piece):
                        pass
                    if track.identified:
                        return
