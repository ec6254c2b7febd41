"""Work that may block on the disk, in threads: whole, or a slice at a time when it may be long.

Long work is a generator. Each slice runs its steps for a moment and gives the thread back, so that
a few threads serve many, and work whose caller went away ends with its slice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Callable, Generic, TypeVar

from agentcube.picod.messages import Response
from agentcube.picod.problems import Problem

SLICE_S = 0.02  # as long as other work may wait, times how much there is of it

LONG_MAX = 32  # each may have some hundred directories open, and some megabytes of their names

T = TypeVar("T")
Y = TypeVar("Y")
R = TypeVar("R")

log = logging.getLogger("picod")


class Stopped(BaseException):
    """Thrown into work that nobody waits for any more. It may clean up in further steps."""


class Work(Generic[Y, R]):
    """A generator that is under way. It yields None, or something for who drives it, which ends a slice."""

    def __init__(self, steps: Generator[Y | None, None, R]) -> None:
        self._steps = steps
        self._lock = threading.Lock()  # a slice may still run when `stop` comes
        self._stopped = False
        self._result: R
        self.done = False

    @property
    def result(self) -> R:
        """What it returned, once `done`."""
        assert self.done
        return self._result

    def slice(self) -> Y | None:
        """Run on for `SLICE_S`, or until it yields something; that, or None. Raises what it raises."""
        with self._lock:
            return self._run()

    def stop(self) -> bool:
        """End it early: do a slice of its cleaning up, and say whether that was all."""
        with self._lock:
            try:
                if not self._stopped:
                    self._stopped = True
                    self._steps.throw(Stopped())
                self._run()
            except (Stopped, StopIteration, Problem):
                self.done = True
            return self.done

    def _run(self) -> Y | None:
        end = time.monotonic() + SLICE_S
        while not self.done and time.monotonic() < end:
            try:
                given = next(self._steps)
            except StopIteration as stop:
                self._result, self.done = stop.value, True
            else:
                if given is not None:
                    return given
        return None


class Workers:
    """The threads, as handlers use them: `pool` for short work, one more for all slices of long work.

    One, because only one thread runs Python at a time: with four of them at it the event loop waits
    twice as long for its turn (5 ms against 2.6 at the median), and no more is done.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Executor) -> None:
        self.loop = loop
        self._pool = pool
        self._long = ThreadPoolExecutor(1, thread_name_prefix="slices")
        self._under_way = 0

    async def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """Call `work` in a thread. Cancelled, it goes on to its end, unheard."""
        return await self.loop.run_in_executor(self._pool, work, *arguments)

    async def hold(self, work: Callable[..., T], *arguments: Any, release: Callable[[T], None]) -> T:
        """As `do`; if this is cancelled meanwhile, `release` gets what came of it."""
        begun = self._pool.submit(work, *arguments)
        try:
            return await asyncio.wrap_future(begun, loop=self.loop)
        except asyncio.CancelledError:
            begun.add_done_callback(lambda done: _release(done, release))
            raise

    def later(self, work: Callable[[], None]) -> None:
        """Call `work` in a thread; nobody waits for it."""
        self._pool.submit(work)

    async def next(self, work: Work[Y, R]) -> Y | None:
        """What the next slice of `work` yields, None if nothing; see `Work.done` for its end."""
        return await self.loop.run_in_executor(self._long, work.slice)

    async def finish(self, steps: Generator[None, None, R]) -> R:
        """Run long work to its end; its result. Cancelled, it is stopped."""
        work: Work[None, R] = self.start(steps)
        try:
            while not work.done:
                await self.next(work)
            return work.result
        finally:
            self.stop(work)

    async def respond(
        self,
        steps: Generator[bytes | None, None, None],
        response: Response,
        headers: tuple[tuple[bytes, bytes], ...],
    ) -> None:
        """A response of the pieces that long work yields, as they come; b"" says that it can begin.

        A Problem after that breaks the response off, which is what the client sees, and is logged.
        """
        work = self.start(steps)
        try:
            while not work.done:
                piece = await self.next(work)
                if piece:
                    await response.write(piece)
                elif piece is not None and not await response.begin(200, headers, None):
                    return
            await response.end()
        except Problem as problem:
            if not response.begun:
                raise
            log.warning("a response breaks off: %s", problem.detail)
        finally:
            self.stop(work)

    def start(self, steps: Generator[Y | None, None, R]) -> Work[Y, R]:
        """Long work, to be driven by `next` and ended by `stop`. Problem when there is too much of it."""
        if self._under_way >= LONG_MAX:
            raise Problem("limit_exceeded", f"{LONG_MAX} long calls on files are under way already")
        self._under_way += 1
        return Work(steps)

    def stop(self, work: Work[Y, R]) -> None:
        """The end of `work`: if it is not done it cleans up, and nobody waits for that. Call it once."""
        self._under_way -= 1
        if not work.done:
            self._long.submit(self._stop, work)

    def _stop(self, work: Work[Y, R]) -> None:
        try:
            if not work.stop():
                self._long.submit(self._stop, work)
        except Exception:
            log.exception("work that was stopped failed")


def _release(done: Future[T], release: Callable[[T], None]) -> None:
    if not done.cancelled() and done.exception() is None:
        release(done.result())
