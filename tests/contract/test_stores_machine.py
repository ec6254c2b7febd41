"""Stores beside a tiny model of themselves, under any sequence of calls and restarts."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.redis_servers import fresh_settings

from agentcube.errors import AlreadyExists, SessionNotFound, StaleRevision
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.pool import WarmState
from agentcube.model.session import Session
from agentcube.ports.store import SessionQuery, Store
from agentcube.stores.memory import MemoryStore
from agentcube.stores.redis.address import Address, parse_address
from agentcube.stores.redis.store import RedisStore
from agentcube.stores.sqlite import SqliteStore
from agentcube.testing.redis_server import RedisServer
from agentcube.testing.samples import NOW, sample_session, sample_warm

R = TypeVar("R")

SESSIONS = st.sampled_from([SessionId(f"s{i}") for i in range(5)])
SECONDS = st.integers(0, 9)


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one call (or several at once) and says what must come of it."""

    durable = False
    leases_outlive = False  # the process, as a shared store's must
    knows_all = True  # and so peeks at every session as it is

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.open_one()
        self.sessions: dict[SessionId, Session] = {}
        self.revisions: dict[SessionId, int] = {}  # the highest one seen in this life of the session
        self.warm: dict[SandboxId, tuple[datetime, bool]] = {}
        self.bound: set[SandboxId] = set()
        self.leased: dict[SessionId, datetime] = {}
        self.now = NOW
        self.made = 0

    def run(self, call: Coroutine[Any, Any, R]) -> R:
        return self.runner.run(call)

    def open_one(self) -> None:
        self.exit = AsyncExitStack()
        self.store: Store = self.run(self.exit.enter_async_context(self.opened()))

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return nullcontext(MemoryStore())

    def teardown(self) -> None:
        self.run(self.exit.aclose())
        self.runner.close()
        shutil.rmtree(self.folder)

    @initialize()
    def nothing(self) -> None:
        assert self.run(self.store.list(SessionQuery())).sessions == ()

    # Sessions

    @rule(id=SESSIONS, due=st.none() | SECONDS)
    def insert(self, id: SessionId, due: int | None) -> None:
        due_at = None if due is None else NOW + timedelta(seconds=due)
        session = sample_session(id, due_at=due_at, created_at=self.now)
        if id in self.sessions:
            with pytest.raises(AlreadyExists):
                self.run(self.store.insert(session))
        else:
            self.put(self.run(self.store.insert(session)))

    @rule(
        id=SESSIONS,
        due=st.none() | SECONDS,
        rivals=st.integers(1, 4),
        stale=st.booleans(),
        relaxed=st.lists(st.booleans(), min_size=4, max_size=4),
    )
    def replace(self, id: SessionId, due: int | None, rivals: int, stale: bool, relaxed: list[bool]) -> None:
        known = self.sessions.get(id) or sample_session(id)
        due_at = None if due is None else NOW + timedelta(seconds=due)
        revision = known.revision - 1 if stale else known.revision
        wanted = [replace(known, due_at=due_at, message=str(i), revision=revision) for i in range(rivals)]
        outcomes = self.run(
            _all(*(self.store.replace(w, relaxed=r) for w, r in zip(wanted, relaxed, strict=False)))
        )
        if id not in self.sessions:
            assert all(isinstance(o, SessionNotFound) for o in outcomes)
        elif stale:
            assert all(isinstance(o, StaleRevision) for o in outcomes)
        else:
            won = [o for o in outcomes if isinstance(o, Session)]
            assert len(won) == 1
            assert sum(isinstance(o, StaleRevision) for o in outcomes) == rivals - 1
            assert won[0].revision == known.revision + 1
            self.put(won[0])

    @rule(id=SESSIONS, stale=st.booleans())
    def delete(self, id: SessionId, stale: bool) -> None:
        known = self.sessions.get(id)
        if known is None:
            self.run(self.store.delete(id, revision=1))
        elif stale:
            with pytest.raises(StaleRevision):
                self.run(self.store.delete(id, revision=known.revision + 1))
        else:
            self.run(self.store.delete(id, revision=known.revision))
            self.forget(id)

    @rule(id=SESSIONS, at=SECONDS)
    def touch(self, id: SessionId, at: int) -> None:
        moment = NOW + timedelta(seconds=at)
        self.run(self.store.touch({id: moment}))
        if (known := self.sessions.get(id)) is not None:
            self.sessions[id] = replace(known, last_activity_at=max(moment, known.last_activity_at))

    # Deadlines

    @rule(by=SECONDS)
    def wait(self, by: int) -> None:
        self.now += timedelta(seconds=by)

    @rule(owners=st.integers(1, 3), limit=st.integers(1, 3))
    def lease(self, owners: int, limit: int) -> None:
        due = sorted(
            (s.due_at, s.id)
            for s in self.sessions.values()
            if s.due_at is not None and s.due_at <= self.now and self.leased.get(s.id, self.now) <= self.now
        )
        span = timedelta(seconds=5)
        taken = self.run(_all(*(
            self.store.lease_due(now=self.now, owner=str(i), lease=span, limit=limit) for i in range(owners)
        )))  # fmt: skip
        got = [s.id for batch in taken for s in batch]
        assert got == [id for _, id in due[: owners * limit]]
        self.leased |= dict.fromkeys(got, self.now + span)

    # Pools

    @rule(ready=st.booleans())
    def warm_up(self, ready: bool) -> None:
        self.made += 1
        entry = sample_warm(
            f"sb-{self.made}", state=WarmState.READY if ready else WarmState.STARTING, created_at=self.now
        )
        self.run(self.store.put_warm(entry))
        self.warm[entry.id] = (self.now, ready)

    @rule(ids=st.sets(SESSIONS, min_size=1))
    def claim(self, ids: set[SessionId]) -> None:
        wanted = [sample_session(id, created_at=self.now, due_at=None) for id in sorted(ids)]
        outcomes = self.run(_all(*(self.store.claim_warm(w) for w in wanted)))
        ready = sorted((at, id) for id, (at, is_ready) in self.warm.items() if is_ready)
        for session, outcome in zip(wanted, outcomes, strict=True):
            if session.id in self.sessions:
                assert isinstance(outcome, AlreadyExists)
            elif not ready:
                assert outcome is None
            else:
                sandbox = ready.pop(0)[1]
                assert isinstance(outcome, Session)
                assert outcome.sandbox is not None
                assert outcome.sandbox.id == sandbox
                assert sandbox not in self.bound  # never claimed twice, also not after a restart
                self.bound.add(sandbox)
                del self.warm[sandbox]
                self.put(outcome)

    @precondition(lambda self: self.warm)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(sorted(self.warm)))
        assert sorted(self.run(_all(*(self.store.remove_warm(id) for _ in range(2))))) == [False, True]
        del self.warm[id]

    @precondition(lambda self: self.durable)
    @rule()
    def restart(self) -> None:
        self.run(self.exit.aclose())
        self.open_one()
        if not self.leases_outlive:
            self.leased.clear()

    # Always

    @invariant()
    def sessions_are_what_they_should_be(self) -> None:
        listed = self.run(self.store.list(SessionQuery())).sessions
        assert {s.id: s for s in listed} == self.sessions
        assert [(s.created_at, s.id) for s in listed] == sorted((s.created_at, s.id) for s in listed)
        for id in (SessionId(f"s{i}") for i in range(5)):
            seen, known = self.store.peek(id), self.sessions.get(id)
            if self.knows_all:
                assert seen == known
            elif seen is not None:
                assert known is not None
                assert replace(seen, last_activity_at=known.last_activity_at) == known

    @invariant()
    def pool_entries_are_what_they_should_be(self) -> None:
        listed = self.run(self.store.list_warm())
        assert {e.id: (e.created_at, e.state is WarmState.READY) for e in listed} == self.warm
        assert not {e.id for e in listed} & self.bound

    def put(self, session: Session) -> None:
        assert session.revision == self.revisions.get(session.id, 0) + 1
        self.revisions[session.id] = session.revision
        self.sessions[session.id] = session
        self.leased.pop(session.id, None)

    def forget(self, id: SessionId) -> None:
        del self.sessions[id], self.revisions[id]
        self.leased.pop(id, None)


class SqliteMachine(StoreMachine):
    durable = True

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return SqliteStore.open(self.folder / "store")


class RedisMachine(StoreMachine):
    durable = True
    leases_outlive = True
    knows_all = False
    address: ClassVar[Address]

    def __init__(self) -> None:
        self.settings = fresh_settings()
        super().__init__()

    def open_one(self) -> None:
        super().open_one()
        self.other: Store = self.run(self.exit.enter_async_context(self.opened()))

    def opened(self) -> AbstractAsyncContextManager[Store]:
        return RedisStore.open(self.address, self.settings)

    @invariant()
    def processes_take_turns(self) -> None:
        self.store, self.other = self.other, self.store
        self.run(self.store.check())  # by its answer, pushes about all earlier changes have come


async def _all(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


TestMemoryMachine = StoreMachine.TestCase
TestSqliteMachine = SqliteMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestSqliteMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)


def test_redis_machine(redis_server: RedisServer) -> None:
    class Machine(RedisMachine):
        address = parse_address(redis_server.url)

    run_state_machine_as_test(
        Machine, settings=settings(max_examples=30, stateful_step_count=40, deadline=None)
    )
