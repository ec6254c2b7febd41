"""The embedded durable store: everything in memory, every change in SQLite before it is answered.

An operation is checked against a staged copy of the tables, in order of arrival; one writer thread
writes all operations that wait as one transaction (WAL, synchronous=FULL: one fsync for all of
them); then, back on the event loop, their changes are shown to readers and their callers answered.
A relaxed one is shown and answered at once, and goes into the next transaction.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self, TypeVar, TypeVarTuple

import anyio

from agentcube.errors import AgentCubeError, StoreFailed
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.ports.store import KeyTaken
from agentcube.stores.embedded import EmbeddedStore
from agentcube.stores.sqlite_file import (
    Statement,
    activity_statements,
    load,
    open_database,
    statement,
)
from agentcube.stores.tables import Change, DropSession, Operation, PutSession, Tables

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_log = logging.getLogger(__name__)

FLUSH_INTERVAL = timedelta(seconds=5)
"""How much noted activity a crash may lose, at most."""

WAITING_MAX = 10_000  # operations on their way; beyond it the disk does not keep up and callers must hear it
BATCH_MAX = 512  # operations in one transaction: bounds how long the first of them waits for the last
CLOSE_S = 30.0  # for a last commit and a checkpoint
CHECK_S = 5.0


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    """One operation on its way to the disk; `committed` tells whether it got there."""

    statements: Sequence[Statement]
    changes: tuple[Change, ...]
    committed: asyncio.Future[bool]


class SqliteStore(EmbeddedStore):
    """A `ports.store.Store` in one SQLite file. Get one from `open`.

    When a commit fails, the store is failed as a whole: every later write, lease and check raises
    StoreFailed, readers keep what was last committed, and whether the writes of that commit are in
    the file is known only after opening it again.
    """

    def __init__(self, path: Path, *, flush_interval: timedelta = FLUSH_INTERVAL) -> None:
        super().__init__()
        self._path = path
        self._flush_interval = flush_interval
        self._staged = Tables()
        self._unsaved: dict[SessionId, datetime] = {}
        self._flush_timer: asyncio.TimerHandle | None = None
        self._waiting: set[_Write] = set()
        self._failure = ""  # why nothing can be written; "" while it can
        self._writer = _Writer(path, committed=self._committed, failed=self._fail)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, *, flush_interval: timedelta = FLUSH_INTERVAL) -> AsyncIterator[Self]:
        """Open the store in the file at `path`, made if absent (its directory must exist).

        Leaving the context writes what is not yet written, noted activity included, and closes the
        file. Raises StoreFailed naming the file and the remedy when it cannot be used.
        """
        store = cls(path, flush_interval=flush_interval)
        try:
            changes = await store._writer.start()
            store._staged.apply(changes)
            store._publish(changes)
            yield store
        finally:
            await store._close()

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        self._must_work()
        self._staged.touch(activity)
        self._unsaved |= self._live.touch(activity)
        if self._unsaved and self._flush_timer is None:
            later = self._flush_interval.total_seconds()
            self._flush_timer = asyncio.get_running_loop().call_later(later, self._flush)

    async def check(self) -> None:
        try:
            async with asyncio.timeout(CHECK_S):
                await self._settled()
        except TimeoutError:
            raise StoreFailed(f"the session store's disk has not answered for {CHECK_S} s") from None

    async def lease_due(
        self, *, now: datetime, owner: str, lease: timedelta, limit: int
    ) -> Sequence[Session]:
        self._must_work()  # whoever cannot store what comes of it should not begin
        return await super().lease_due(now=now, owner=owner, lease=lease, limit=limit)

    async def _commit(self, operation: Operation[R]) -> R:
        return await self._do(operation, relaxed=False)

    async def _commit_relaxed(self, operation: Operation[R]) -> R:
        """Shown to readers at once, and written with the next transaction."""
        return await self._do(operation, relaxed=True)

    async def _do(self, operation: Operation[R], *, relaxed: bool) -> R:
        self._must_work()
        try:
            outcome = operation(self._staged)
            statements = [statement(change) for change in outcome.changes]
        except (AgentCubeError, KeyTaken):
            await self._settled()  # what refused it may not be on disk yet
            raise
        if outcome.changes:
            self._staged.apply(outcome.changes)
            if relaxed and not self._is_waiting(outcome.changes):
                self._publish(outcome.changes)
                self._enqueue(statements, ())
            else:
                await self._write(statements, outcome.changes)
        else:
            await self._settled()  # what it found may not be on disk yet, either
        return outcome.answer

    def _is_waiting(self, changes: Sequence[Change]) -> bool:
        """Whether an earlier change of the same sessions is not shown yet: it would be shown on top."""
        ids = {change.session.id for change in changes if isinstance(change, PutSession)}
        return any(
            (change.session.id if isinstance(change, PutSession) else change.id) in ids
            for write in self._waiting
            for change in write.changes
            if isinstance(change, PutSession | DropSession)
        )

    async def _settled(self) -> None:
        """Return once everything staged so far is committed."""
        self._must_work()
        if self._waiting:
            await self._write((), ())

    async def _write(self, statements: Sequence[Statement], changes: tuple[Change, ...]) -> None:
        # A caller that is cancelled while it waits has its change made nevertheless.
        if not await self._enqueue(statements, changes).committed:
            raise StoreFailed(self._failure)

    def _enqueue(self, statements: Sequence[Statement], changes: tuple[Change, ...]) -> _Write:
        """Send an operation to the writer, and with it the activity that is not saved yet."""
        activity, self._unsaved = self._unsaved, {}
        if self._flush_timer is not None:
            self._flush_timer.cancel()
            self._flush_timer = None
        committed = asyncio.get_running_loop().create_future()
        write = _Write([*statements, *activity_statements(activity)], changes, committed)
        self._waiting.add(write)
        self._writer.put(write)
        return write

    def _flush(self) -> None:
        self._flush_timer = None
        if not self._failure:
            self._enqueue((), ())

    def _must_work(self) -> None:
        if self._failure:
            raise StoreFailed(self._failure)
        if len(self._waiting) >= WAITING_MAX:
            raise StoreFailed(f"{WAITING_MAX} changes wait for the session store's disk; try again")

    def _committed(self, batch: Sequence[_Write]) -> None:
        """The writer's word, on the event loop: these are on disk."""
        for write in batch:
            self._publish(write.changes)
        for write in batch:
            self._waiting.discard(write)
            if not write.committed.done():
                write.committed.set_result(True)

    def _fail(self, reason: str) -> None:
        """The writer's word, on the event loop: nothing more will be written."""
        self._failure = reason
        for write in self._waiting:
            if not write.committed.done():
                write.committed.set_result(False)
        self._waiting.clear()

    async def _close(self) -> None:
        if not self._failure and self._unsaved:
            self._enqueue((), ())
        self._failure = self._failure or "the session store is closed"
        self._feed.close()
        self._bell.close()
        with anyio.move_on_after(CLOSE_S, shield=True):
            await self._writer.stop()
        self._fail(self._failure)


class _Writer:
    """The one thread that uses the database. Its callbacks are called on the event loop."""

    def __init__(
        self,
        path: Path,
        *,
        committed: Callable[[Sequence[_Write]], None],
        failed: Callable[[str], None],
    ) -> None:
        self._path = path
        self._tell_committed = committed
        self._tell_failed = failed
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[list[Change]] = self._loop.create_future()
        self._ended = asyncio.Event()
        # A daemon, as a process that ends without closing its store is a crash, not a hang.
        self._thread = threading.Thread(target=self._run, name="agentcube-store", daemon=True)

    async def start(self) -> list[Change]:
        """Open the file; returns everything in it. Raises StoreFailed."""
        self._thread.start()
        return await self._opened

    async def stop(self) -> None:
        """Write what was put, close the file and end the thread."""
        if self._thread.is_alive():
            self._queue.put(None)
            await self._ended.wait()
            self._thread.join()

    def put(self, write: _Write) -> None:
        """Have it written with whatever else waits. Never blocks."""
        self._queue.put(write)

    def _run(self) -> None:
        try:
            with closing(open_database(self._path)) as connection:
                self._tell(self._settle_opened, load(connection, self._path), None)
                while batch := self._next_batch():
                    _execute(connection, batch)
                    self._tell(self._tell_committed, batch)
        except Exception as exc:
            if not isinstance(exc, AgentCubeError):
                _log.exception("store failed: %s", self._path)
            self._tell(self._settle_opened, [], exc)
            self._tell(
                self._tell_failed,
                f"the session store cannot be written any more ({exc}): see to its disk, then restart",
            )
        finally:
            self._tell(self._ended.set)

    def _settle_opened(self, changes: list[Change], exc: Exception | None) -> None:
        if self._opened.done():
            return
        if exc is None:
            self._opened.set_result(changes)
        else:
            self._opened.set_exception(exc)

    def _next_batch(self) -> list[_Write]:
        """What waits, in order, once something does; empty when it is time to end."""
        batch: list[_Write] = []
        try:
            while len(batch) < BATCH_MAX:
                write = self._queue.get(block=not batch)
                if write is None:
                    if batch:
                        self._queue.put(None)
                    break
                batch.append(write)
        except queue.Empty:
            pass
        return batch

    def _tell(self, callback: Callable[[*Ts], None], *arguments: *Ts) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the event loop is closed: nobody is left to hear it
            _log.warning("store outlived its event loop")


def _execute(connection: sqlite3.Connection, batch: Sequence[_Write]) -> None:
    statements = [s for write in batch for s in write.statements]
    if not statements:
        return
    connection.execute("BEGIN IMMEDIATE")
    for sql, parameters in statements:
        connection.execute(sql, parameters)
    connection.execute("COMMIT")
