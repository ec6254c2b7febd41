"""Standard input, output and signals beside an event loop, on every operating system.

Reading and writing block in threads of their own, so that neither a silent writer nor a slow reader keeps the
loop from anything else. The threads are daemons: one that is blocked does not hold up the end of the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import select
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from types import FrameType

SIGNALLED = 128  # plus the number: the exit code of what a signal ended, as shells have it
READ_BYTES = 64 * 1024
WAITING_BYTES_MAX = 1024 * 1024  # read and not yet taken; then the writer on the other side waits


class Inlet:
    """Reads a descriptor as its bytes come. What came while the last piece was being sent is one piece."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._some = asyncio.Event()
        self._waiting = bytearray()
        self._ended = False
        self._room = threading.Condition()
        threading.Thread(target=self._pump, name="stdin", daemon=True).start()

    async def read(self) -> bytes:
        """The next bytes; none at the end, and at an error, which to the program inside is an end, too."""
        while True:
            await self._some.wait()
            with self._room:
                data = bytes(self._waiting)
                self._waiting.clear()
                self._room.notify()
                if data or self._ended:
                    return data
                self._some.clear()

    def _pump(self) -> None:
        while True:
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:  # whoever shares the terminal or pipe with us made it so
                select.select([self._fd], [], [])
                continue
            except OSError:
                data = b""
            with self._room:
                self._waiting += data
                self._ended = not data
            try:
                self._loop.call_soon_threadsafe(self._some.set)
            except RuntimeError:  # the loop is closed: nobody wants more
                return
            if not data:
                return
            with self._room:
                self._room.wait_for(lambda: len(self._waiting) < WAITING_BYTES_MAX)


class Outlet:
    """Writes to descriptors, in the order of the calls. For the length of a block."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._orders: queue.SimpleQueue[tuple[int, bytes, asyncio.Future[None]] | None] = queue.SimpleQueue()

    def __enter__(self) -> Outlet:
        threading.Thread(target=self._pump, name="stdout", daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._orders.put(None)

    async def write(self, fd: int, data: bytes) -> None:
        """Write all of it. Raises OSError, as BrokenPipeError when nobody reads any more."""
        done: asyncio.Future[None] = self._loop.create_future()
        self._orders.put((fd, data, done))
        await done

    def _pump(self) -> None:
        while (order := self._orders.get()) is not None:
            fd, data, done = order
            failure: OSError | None = None
            try:
                _write_all(fd, data)
            except OSError as exc:
                failure = exc
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for this any more
                self._loop.call_soon_threadsafe(_settle, done, failure)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


def _settle(done: asyncio.Future[None], failure: OSError | None) -> None:
    if done.done():  # whoever waited was cancelled
        return
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)


Heard = Callable[[int], None]


@contextlib.contextmanager
def hearing(heard: Heard, *names: str) -> Iterator[None]:
    """Calls `heard` in the loop with the number of each of these signals that comes, for the length of a block.

    What this system does not have is left out, and so is what is ignored: whoever started us wanted that.
    """
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]

    def handler(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(heard, number)

    before = {number: signal.getsignal(number) for number in numbers}
    mine = [number for number, was in before.items() if was not in (signal.SIG_IGN, None)]
    for number in mine:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def run_until_told(work: Coroutine[None, None, int]) -> int:
    """Run to the end, which is an exit code. A signal cancels the work, so that it ends in order; again, its ending."""
    told = 0

    async def main() -> int:
        task = asyncio.ensure_future(work)

        def hear(number: int) -> None:
            nonlocal told
            told = number
            task.cancel()

        with hearing(hear, "SIGINT", "SIGTERM", "SIGHUP"):
            try:
                return await task
            except asyncio.CancelledError:
                if not told:
                    raise
                return SIGNALLED + told

    return asyncio.run(main())
