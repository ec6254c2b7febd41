"""One cell under way or over: its events, numbered, kept until the client has them, and sent to one reader.

With a grace, what was not confirmed is never dropped, and at its bound the kernel is held up. Without,
what went to the client's socket counts as delivered. What is delivered stays for a while, for whoever
asks again, as far as there is room.
"""

from __future__ import annotations

import asyncio
import codecs
import os
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Callable

from agentcube.picod.events import EventStream
from agentcube.picod.kernel_events import members

STORE_BYTES_MAX = (
    48 << 20
)  # of all kernels' events together; counted in PicoD's bound (drivers.local.cgroups)
FAIR_BYTES = 64 * 1024  # that every cell may keep, however much others do
HELD_BYTES = 4 << 20  # of a cell with a grace, while they are not confirmed
DIRECT_BYTES = 256 * 1024  # of one without: they wait for the socket
UNCONFIRMED_BYTES = 512 * 1024
"""What a stream with a grace sends before the client has to say what it got: sockets on the way hold megabytes."""


Event = tuple[int, str, bytes]  # number, name, JSON


class Store:
    """What all cells keep together, and who may receive something large."""

    def __init__(self, total: int = STORE_BYTES_MAX) -> None:
        self._total = total
        self._kept = 0
        self._over: dict[Execution, None] = {}  # ended ones, in that order: they lose theirs first
        self._large: object | None = None
        self._waiting: dict[object, Callable[[], None]] = {}

    @property
    def crowded(self) -> bool:
        """Whether nobody should keep more than is fair."""
        return self._kept > self._total

    def changed(self, size: int) -> None:
        """`size` bytes more are kept, or fewer."""
        self._kept += size
        for oldest in list(self._over) if self.crowded else ():
            if self.crowded and not oldest.is_read:
                del self._over[oldest]
                oldest.drop()
        if size < 0 and not self.crowded:
            self._call()

    def is_over(self, execution: Execution) -> None:
        """The cell has ended: what it keeps goes before that of others."""
        self._over[execution] = None
        self.changed(0)

    def forget(self, execution: Execution) -> None:
        """It keeps nothing any more."""
        self._over.pop(execution, None)

    def take_large(self, who: object) -> bool:
        """Whether `who` may receive something large now: one at a time, and not while it is crowded."""
        if self._large is None and not self.crowded:
            self._large = who
        return self._large is who

    def give_large(self, who: object) -> None:
        """`who` is done with it, or gone. Idempotent."""
        if self._large is who:
            self._large = None
            self._call()

    def tell(self, who: object, room: Callable[[], None]) -> None:
        """Call `room` when there may be room again; once."""
        self._waiting[who] = room

    def _call(self) -> None:
        waiting, self._waiting = self._waiting, {}
        for room in waiting.values():
            room()


@dataclass(frozen=True)
class Order:
    """A cell that somebody wants to be run. Times in seconds; no timeout: none."""

    code: str
    timeout_s: float | None = None
    grace_s: float = 0.0
    wait_s: float = 0.0
    interrupt_grace_s: float = 5.0
    store_history: bool = True
    silent: bool = False
    key: str | None = None
    digest: bytes = b""


class Execution:
    """A cell's events. `room` is called when the kernel may go on writing, `abandoned` when nobody will read."""

    def __init__(self, loop: asyncio.AbstractEventLoop, store: Store, order: Order, count: int) -> None:
        self._loop = loop
        self._store = store
        self.id = "e-" + os.urandom(8).hex()
        self.order = order
        self.count = count  # what the cell is numbered
        self.begun = False  # the kernel said so: an interrupt meets the cell
        self.status: str | None = None  # how it ended
        self.stopping: str | None = None  # what its status will be if it does stop
        self.room: Callable[[], None] = _nothing
        self.abandoned: Callable[[], None] = _nothing
        self.done = asyncio.Event()
        self.expiry: asyncio.TimerHandle | None = None  # of its being kept; its keeper's to use
        self._begin = time.monotonic()
        self._kept: deque[Event] = deque()  # the client has these
        self._fresh: deque[Event] = deque()  # and not yet these, which follow
        self.size = 0  # bytes of both
        self._pending = 0  # bytes of the fresh ones
        self.last = 0  # the number of the newest event
        self._reader: object | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._owed = True  # somebody reads it, or may come back
        self._dismissed = False
        self._waiters: list[asyncio.Future[None]] = []
        self._decoders = _decoders()

    # Writing

    def add(self, event: str, inner: str) -> None:
        """Keep one event, whose members `inner` are JSON without braces."""
        self.last += 1
        line = f'{{"event":"{event}","seq":{self.last}{"," if inner else ""}{inner}}}'.encode("ascii")
        self._fresh.append((self.last, event, line))
        self.size += len(line)
        self._pending += len(line)
        self._store.changed(len(line))
        if not self._owed:
            self._deliver(self.last)
        self._wake()

    def output(self, stream: str, data: bytes) -> None:
        """What the cell wrote on `stdout` or `stderr`; a character that is not whole yet waits for its rest."""
        text = self._decoders[stream].decode(data)
        if text:
            self.add(stream, members(text=text))

    @property
    def full(self) -> bool:
        """Whether the kernel should be held up. One that is to stop may write a little more, to say so."""
        if self._pending < FAIR_BYTES:
            return False
        limit = HELD_BYTES if self.order.grace_s else DIRECT_BYTES
        if self._pending >= (limit if self.stopping is None else 2 * limit):
            return True
        if self._store.crowded:
            self._store.tell(self, self._has_room)
            return True
        return False

    def finish(self, status: str, *, state_lost: bool, reason: str = "", **more: Any) -> None:
        """The last event."""
        for stream, decoder in self._decoders.items():
            text = decoder.decode(b"", final=True)
            if text:
                self.add(stream, members(text=text))
        if reason:
            more["reason"] = reason
        duration = round(time.monotonic() - self._begin, 6)
        self.status = status
        self.add(
            "end",
            members(
                status=status, execution_count=self.count, duration=duration, state_lost=state_lost, **more
            ),
        )
        self._store.is_over(self)
        self.done.set()

    # Reading

    def attach(self, after: int) -> object:
        """Become the one reader, who has the events up to `after`; what `detach` takes."""
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        self._deliver(after)
        self._reader = reader = object()
        self._wake()
        return reader

    def detach(self, reader: object) -> None:
        """The reader is gone. If no other comes within the grace, nobody is owed the cell any more."""
        if self._reader is not reader:
            return
        self._reader = None
        if self._dismissed:
            self._forget()
        if self.status is not None:
            return
        if self.order.grace_s:
            self._grace = self._loop.call_later(self.order.grace_s, self._abandon)
        else:
            self._abandon()

    @property
    def is_read(self) -> bool:
        """Whether it has a reader now."""
        return self._reader is not None

    def _abandon(self) -> None:
        self._owed = False
        self._deliver(self.last)
        if self.status is None:
            self.abandoned()

    async def stream(self, events: EventStream, reader: object, after: int) -> None:
        """Send the events from the one behind `after` on, up to the last, or until the client must confirm."""
        sent = 0
        while True:
            if self._reader is not reader:
                await events.send("replaced", {})
                break
            found = self._next(after)
            if found is None:
                if self.status is not None:
                    break
                await self._change()
                continue
            number, event, line = found
            if number > after + 1:
                await events.send("gap", {"from": after + 1, "to": number - 1})
            await events.send_encoded(event, line)
            after, sent = number, sent + len(line)
            if not self.order.grace_s and self._reader is reader:
                self._deliver(number)
            elif sent >= UNCONFIRMED_BYTES and event != "end":
                await events.send("more", {"after": number})
                break
        await events.close()

    def _next(self, after: int) -> Event | None:
        """The first kept event behind `after`."""
        for events in (self._kept, self._fresh):
            if events and after < events[-1][0]:
                return events[max(0, after + 1 - events[0][0])]
        return None

    # Keeping

    def _deliver(self, number: int) -> None:
        """The client has everything up to `number`."""
        while self._fresh and self._fresh[0][0] <= number:
            event = self._fresh.popleft()
            self._pending -= len(event[2])
            self._kept.append(event)
        while self.size > HELD_BYTES and self._kept:
            self._forget_oldest(self._kept)
        self._has_room()

    def _has_room(self) -> None:
        if not self.full:
            self.room()

    def drop(self) -> None:
        """Keep nothing but how it ended: the room is needed. Who asks later is told of a gap."""
        while len(self._kept) + len(self._fresh) > 1:
            self._forget_oldest(self._kept or self._fresh)

    def _forget_oldest(self, events: deque[Event]) -> None:
        _, _, line = events.popleft()
        self.size -= len(line)
        if events is self._fresh:
            self._pending -= len(line)
        self._store.changed(-len(line))

    def dismiss(self) -> None:
        """Nobody can ask for it any more; who reads it now, does so to the end."""
        self._dismissed = True
        if not self.is_read:
            self._forget()

    def _forget(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
        self._store.forget(self)
        self._store.changed(-self.size)
        self._kept.clear()
        self._fresh.clear()
        self.size = self._pending = 0

    # Waiting

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _change(self) -> None:
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter


def _decoders() -> dict[str, codecs.IncrementalDecoder]:
    decoder = codecs.getincrementaldecoder("utf-8")
    return {"stdout": decoder("replace"), "stderr": decoder("replace")}


def _nothing() -> None:
    pass
