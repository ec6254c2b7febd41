"""Stores beside a tiny model of themselves, under any sequence of calls and restarts."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentcube.errors import AlreadyExists, SessionNotFound, StaleRevision
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.pool import WarmState
from agentcube.model.session import Session
from agentcube.ports.store import SessionQuery, Store
from agentcube.stores.memory import MemoryStore
from agentcube.stores.sqlite import SqliteStore
from agentcube.testing.samples import NOW, sample_session, sample_warm

R = TypeVar("R")

SESSIONS = st.sampled_from([SessionId(f"s{i}") for i in range(5)])
SECONDS = st.integers(0, 9)


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one call (or several at once) and says what must come of it."""

    durable = False

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
        self.store: Store = MemoryStore()
        if self.durable:
            self.store = self.run(self.exit.enter_async_context(SqliteStore.open(self.folder / "store")))

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

    @rule(id=SESSIONS, due=st.none() | SECONDS, rivals=st.integers(1, 4), stale=st.booleans())
    def replace(self, id: SessionId, due: int | None, rivals: int, stale: bool) -> None:
        known = self.sessions.get(id) or sample_session(id)
        due_at = None if due is None else NOW + timedelta(seconds=due)
        revision = known.revision - 1 if stale else known.revision
        wanted = [replace(known, due_at=due_at, message=str(i), revision=revision) for i in range(rivals)]
        outcomes = self.run(_all(*(self.store.replace(w) for w in wanted)))
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
        self.leased.clear()

    # Always

    @invariant()
    def sessions_are_what_they_should_be(self) -> None:
        listed = self.run(self.store.list(SessionQuery())).sessions
        assert {s.id: s for s in listed} == self.sessions
        assert [(s.created_at, s.id) for s in listed] == sorted((s.created_at, s.id) for s in listed)
        for id in (SessionId(f"s{i}") for i in range(5)):
            assert self.store.peek(id) == self.sessions.get(id)

    @invariant()
    def pool_entries_are_what_they_should_be(self) -> None:
        listed = self.run(self.store.list_warm())
        assert {e.id: (e.created_at, e.state is WarmState.READY) for e in listed} == self.warm
        assert not {e.id for e in listed} & self.bound

    @invariant()
    def the_next_deadline_is_the_earliest(self) -> None:
        due = (s.due_at for s in self.sessions.values() if s.due_at is not None)
        assert self.run(self.store.next_due()) == min(due, default=None)

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


async def _all(*calls: Coroutine[Any, Any, Any]) -> list[Any]:
    return await asyncio.gather(*calls, return_exceptions=True)


TestMemoryMachine = StoreMachine.TestCase
TestSqliteMachine = SqliteMachine.TestCase
TestMemoryMachine.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestSqliteMachine.settings = settings(max_examples=30, stateful_step_count=40, deadline=None)
