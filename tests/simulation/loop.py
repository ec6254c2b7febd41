"""An asyncio event loop without I/O, on virtual time: the same seed is the same run, to the last callback.

Every callback belongs to a `Process`, which can be crashed or paused between any two callbacks, that is
at any `await`. Within a process callbacks run in the order in which they were scheduled, as asyncio
promises; between processes the order follows from the delays that the seeded world gives its messages.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import sys
import zlib
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from tests.simulation.errors import Stuck


class Process:
    """What crashes and pauses as one: its callbacks, timers and whatever is sent to it."""

    __slots__ = ("alive", "crash_in", "graveyard", "mark", "name", "on_death", "parked", "paused")

    def __init__(self, name: str) -> None:
        self.name = name
        self.mark = zlib.crc32(name.encode())
        self.alive = True
        self.paused = False
        self.parked: list[_Handle] = []
        self.crash_in = 0  # callbacks from now on; 0: it does not
        self.graveyard: list[asyncio.Task[Any]] = []
        self.on_death: dict[Callable[[], None], None] = {}

    def __repr__(self) -> str:
        return self.name


class _Handle:
    """What a loop returns for a scheduled callback; as much of asyncio's as anybody uses."""

    __slots__ = ("args", "callback", "context", "live", "process", "when_")

    def __init__(
        self, process: Process, callback: Any, args: Any, context: contextvars.Context, when: float
    ) -> None:
        self.process = process
        self.callback = callback
        self.args = args
        self.context = context
        self.when_ = when
        self.live = True

    def cancel(self) -> None:
        self.live = False
        self.callback = self.args = None

    def cancelled(self) -> bool:
        return not self.live

    def when(self) -> float:
        return self.when_


class _Task(asyncio.Task):  # type: ignore[type-arg]
    """A task whose place in a set does not depend on its address: `TaskGroup` cancels a set of them."""

    _serials = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._serial = next(_Task._serials)
        super().__init__(*args, **kwargs)
        self.process = kwargs["loop"].current

    def __hash__(self) -> int:
        return self._serial


class SimLoop(asyncio.AbstractEventLoop):
    """`events` counts timers that fired and messages that arrived, not the callbacks that follow from them.

    `digest` is of all of them, in order: two runs with the same one were the same run.
    """

    def __init__(self) -> None:
        self.world = Process("world")
        self.current = self.world
        self.events = 0
        self.digest = 0
        self.events_max = EVENTS_MAX
        self.problems: list[str] = []
        """What asyncio complained of: exceptions that nobody retrieved."""
        self.on_crash: Callable[[Process], None] = lambda process: None
        self._now = 0.0
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self._order = itertools.count()
        self._stopping = False
        self._running = False
        self._closed = False
        self._generators: list[Any] = []
        _Task._serials = itertools.count()
        self.connect: Callable[[Any, str], Coroutine[Any, Any, Any]] | None = None

    # Scheduling

    def time(self) -> float:
        return self._now

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:
        handle = _Handle(self.current, callback, args, context or contextvars.copy_context(), self._now)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self.call_at(self._now + max(delay, 0.0), callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> Any:
        return self._at(self.current, when, callback, args, context or contextvars.copy_context())

    def deliver(self, process: Process, when: float, callback: Callable[..., None], *args: Any) -> _Handle:
        """Call `callback` at `when` as a step of `process`: how everything travels between processes."""
        return self._at(process, when, callback, args, _EMPTY)

    def _at(self, process: Process, when: float, callback: Any, args: Any, context: Any) -> _Handle:
        handle = _Handle(process, callback, args, context, when)
        heapq.heappush(self._timers, (when, next(self._order), handle))
        return handle

    # Processes

    @contextmanager
    def within(self, process: Process) -> Iterator[None]:
        """What is scheduled here is `process`'s."""
        before, self.current = self.current, process
        try:
            yield
        finally:
            self.current = before

    def crash(self, process: Process) -> None:
        """Nothing of it ever runs again, no `finally` either; what it had told others stays told."""
        process.alive = False
        process.parked.clear()
        # Kept, for a coroutine that is dropped is closed, and that would run its `finally`.
        process.graveyard = [task for task in asyncio.all_tasks(self) if task.process is process]
        for told in list(process.on_death):
            told()
        process.on_death.clear()

    def pause(self, process: Process) -> None:
        """It stands still; what is for it waits."""
        process.paused = True

    def go_on(self, process: Process) -> None:
        """The end of a pause."""
        process.paused = False
        self._ready.extend(process.parked)
        process.parked.clear()

    # Running

    def run_forever(self) -> None:
        """Until `stop`. Raises Stuck when there is nothing left that could ever happen."""
        asyncio._set_running_loop(self)
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generators.append, finalizer=self._finalize)
        self._running, self._stopping = True, False
        try:
            self._run()
        finally:
            self._running = False
            sys.set_asyncgen_hooks(*hooks)
            asyncio._set_running_loop(None)

    def _run(self) -> None:
        ready = self._ready
        while not self._stopping:
            if not ready:
                self._due()
            handle = ready.popleft()
            if not handle.live:
                continue
            process = handle.process
            if not process.alive:
                continue
            if process.paused:
                process.parked.append(handle)
                continue
            if process.crash_in:
                process.crash_in -= 1
                if not process.crash_in:
                    self.current = self.world
                    self.on_crash(process)
                    continue
            self.current = process
            handle.context.run(handle.callback, *handle.args)
        self.current = self.world

    def _due(self) -> None:
        """Move to `ready` whatever comes next, and all that comes at the same time, as asyncio does."""
        timers, ready, pop = self._timers, self._ready, heapq.heappop
        while not ready:
            if not timers:
                raise Stuck("nothing is left that could happen")
            if self.events > self.events_max:
                raise Stuck("the run does not end")
            now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= now:
                handle = pop(timers)[2]
                process = handle.process
                if handle.live and process.alive:
                    ready.append(handle)
                    self._now = now
                    if not process.paused:
                        self.events += 1
                        self.digest = (self.digest * 1000003 ^ hash(now) ^ process.mark) & _MASK

    def run_until_complete(self, future: Any) -> Any:
        task = asyncio.ensure_future(future, loop=self)
        task.add_done_callback(lambda _: self.stop())
        self.run_forever()
        return task.result()

    def stop(self) -> None:
        self._stopping = True

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Drop what is left without a word; nothing of it runs."""
        self._closed = True
        silent, sys.unraisablehook = sys.unraisablehook, lambda args: None
        try:
            self._ready.clear()
            self._timers.clear()
            for task in [task for task in asyncio.all_tasks(self) if not task.done()]:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                except BaseException:  # what a dead process's `finally` runs into
                    pass
            self._generators.clear()
        finally:
            sys.unraisablehook = silent

    def _finalize(self, generator: Any) -> None:
        if not self._closed:
            self.create_task(generator.aclose())

    async def shutdown_asyncgens(self) -> None:
        """Nothing of this outlives the loop."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """There is none."""

    # Futures and tasks

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: Any = None, context: Any = None) -> Any:
        return _Task(coro, loop=self, name=name or "task", context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        """At once: threads would be somebody else's order."""
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except Exception as exc:  # the future's to tell
            done.set_exception(exc)
        return done

    async def create_unix_connection(self, factory: Any, path: Any = None, **options: Any) -> Any:
        """To whatever the simulated world has at `path`."""
        assert self.connect is not None
        return await self.connect(factory, path)

    # What asyncio asks of a loop

    def get_debug(self) -> bool:
        return False

    def set_debug(self, enabled: bool) -> None:
        """Never."""

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._closed and self.current.alive:
            self.complain(f"{context.get('message')}: {context.get('exception')!r}")

    def complain(self, text: str) -> None:
        """Something happened that is nobody's intention: the run ends with it."""
        self.problems.append(f"at {self._now:.6f} s, in {self.current}: {text}")
        self.stop()

    def set_exception_handler(self, handler: Any) -> None:
        """Complaints are kept in `problems`."""

    def get_exception_handler(self) -> None:
        return None

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


EVENTS_MAX = 2_000_000
"""Of one run: some fifty times what a usual one has."""
_EMPTY = contextvars.Context()
_MASK = (1 << 64) - 1
