"""One session being looked after, and how a start that is no longer wanted is given up."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from agentcube.errors import AgentCubeError, StartTimedOut


class Interrupted(Exception):
    """The act was given up because something else is wanted now; look again."""


class Flight:
    """The task that looks after one session. `error` says why it ended early.

    `acting`: it does something to the sandbox now. `news` is set when the session may have changed.
    """

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.again = False
        self.acting = False
        self.renewing: asyncio.Task[None] | None = None
        self.news = asyncio.Event()
        self.error: AgentCubeError | None = None
        self._deadline: asyncio.Timeout | None = None
        self._interrupted = False

    def interrupt(self) -> None:
        """End the driver call under way if it is one that can be given up; the flight then looks again."""
        if self._deadline is not None:
            self._interrupted = True
            self._deadline.reschedule(asyncio.get_running_loop().time())

    @contextlib.asynccontextmanager
    async def starting(self, seconds: float) -> AsyncIterator[None]:
        """A step that `interrupt` may end (Interrupted) and that ends after `seconds` (StartTimedOut)."""
        self._interrupted = False
        try:
            async with asyncio.timeout(seconds) as deadline:
                self._deadline = deadline
                try:
                    yield
                finally:
                    self._deadline = None
        except TimeoutError as exc:
            if self._interrupted:
                raise Interrupted from None
            raise StartTimedOut(f"the sandbox was not ready within {seconds:g} s") from exc
