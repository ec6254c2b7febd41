"""What every `ports.store.Store` does, as tests. Subclass `StoreContract` and give `open_store`.

A store that outlives its process subclasses `DurableStoreContract` instead. Needs pytest, with
anyio's plugin (installed with anyio). Call
`pytest.register_assert_rewrite("agentcube.testing.store_contract")` before importing it for
readable failures.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from agentcube.errors import (
    AlreadyExists,
    Conflict,
    Invalid,
    SessionNotFound,
    StaleRevision,
    TemplateNotFound,
)
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmState
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.store import Reservation, SessionQuery, Store
from agentcube.testing.samples import (
    KEY,
    NOW,
    full_session,
    full_template,
    sample_session,
    sample_template,
    sample_warm,
)

OpenStore = Callable[[], AbstractAsyncContextManager[Store]]

OTHER = TemplateKey(Kind.AGENT_RUNTIME, "team-a", "agent")
SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=30)


class StoreContract:
    """Run against every store."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """Opens an empty store; a durable one opens the same store again at each call within a test."""
        raise NotImplementedError

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> AsyncIterator[Store]:
        async with open_store() as store:
            yield store

    async def test_a_working_store_checks_out(self, store: Store) -> None:
        await store.check()

    # Sessions

    async def test_an_inserted_session_is_found_as_it_was_at_revision_1(self, store: Store) -> None:
        session = full_session()
        stored = await store.insert(session)
        assert stored == replace(session, revision=1)
        assert await store.get(session.id) == stored
        assert store.peek(session.id) in (stored, None)

    async def test_an_unknown_session_is_not_found(self, store: Store) -> None:
        with pytest.raises(SessionNotFound):
            await store.get(SessionId("nobody"))
        assert store.peek(SessionId("nobody")) is None

    async def test_an_id_can_be_inserted_once(self, store: Store) -> None:
        first = await store.insert(sample_session("a", owner="ada"))
        with pytest.raises(AlreadyExists):
            await store.insert(sample_session("a", owner="eve"))
        assert await store.get(first.id) == first

    async def test_one_of_many_inserts_of_an_id_wins(self, store: Store) -> None:
        tries = (store.insert(sample_session("a", owner=str(i))) for i in range(8))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        won = [o for o in outcomes if not isinstance(o, AlreadyExists)]
        assert won == [await store.get(SessionId("a"))]

    async def test_a_replaced_session_grows_its_revision_by_one(self, store: Store) -> None:
        session = await store.insert(sample_session())
        for revision in range(2, 6):
            session = await store.replace(replace(session, message=str(revision)))
            assert session.revision == revision
            assert await store.get(session.id) == session

    async def test_a_stale_replace_changes_nothing(self, store: Store) -> None:
        old = await store.insert(sample_session())
        new = await store.replace(replace(old, message="first"))
        for revision in (old.revision, new.revision + 1):
            with pytest.raises(StaleRevision):
                await store.replace(replace(old, revision=revision, message="second"))
        assert await store.get(old.id) == new

    async def test_one_of_many_replaces_of_a_revision_wins(self, store: Store) -> None:
        session = await store.insert(sample_session())
        tries = (store.replace(replace(session, message=str(i))) for i in range(8))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        won = [o for o in outcomes if not isinstance(o, StaleRevision)]
        assert won == [await store.get(session.id)]

    async def test_counting_by_compare_and_swap_loses_nothing(self, store: Store) -> None:
        session = await store.insert(sample_session(message="0"))

        async def count() -> None:
            while True:
                seen = await store.get(session.id)
                try:
                    await store.replace(replace(seen, message=str(int(seen.message) + 1)))
                except StaleRevision:
                    continue
                return

        await asyncio.gather(*(count() for _ in range(16)))
        final = await store.get(session.id)
        assert (final.message, final.revision) == ("16", 17)

    async def test_a_deleted_session_stays_gone(self, store: Store) -> None:
        session = await store.insert(sample_session())
        with pytest.raises(StaleRevision):
            await store.delete(session.id, revision=session.revision + 1)
        await store.delete(session.id, revision=session.revision)
        with pytest.raises(SessionNotFound):
            await store.get(session.id)
        with pytest.raises(SessionNotFound):
            await store.replace(session)
        await store.touch({session.id: NOW + SECOND})
        assert store.peek(session.id) is None
        assert (await store.list(SessionQuery())).sessions == ()
        await store.delete(session.id, revision=session.revision)  # absent is no error

    # Listing

    async def test_sessions_are_listed_oldest_first(self, store: Store) -> None:
        for id, age in (("b", 2), ("c", 1), ("a", 3), ("d", 2)):
            await store.insert(sample_session(id, created_at=NOW - age * SECOND))
        page = await store.list(SessionQuery())
        assert [s.id for s in page.sessions] == ["a", "b", "d", "c"]
        assert page.cursor is None

    async def test_a_query_selects(self, store: Store) -> None:
        plain = await store.insert(sample_session())
        odd = await store.insert(
            sample_session(owner="eve", template=OTHER, phase=Phase.READY, metadata={"a": "1", "b": "2"})
        )
        everything = SessionQuery()
        assert len((await store.list(everything)).sessions) == 2
        for query in (
            SessionQuery(owner="eve"),
            SessionQuery(kind=Kind.AGENT_RUNTIME),
            SessionQuery(namespace="team-a"),
            SessionQuery(phase=Phase.READY),
            SessionQuery(metadata={"a": "1"}),
            SessionQuery(metadata={"a": "1", "b": "2"}, owner="eve"),
        ):
            assert (await store.list(query)).sessions == (odd,)
        assert (await store.list(SessionQuery(owner="ada"))).sessions == (plain,)
        assert (await store.list(SessionQuery(metadata={"a": "2"}))).sessions == ()

    async def test_pages_show_every_match_once_while_sessions_come_and_go(self, store: Store) -> None:
        made = [
            await store.insert(sample_session(owner="ada" if i % 2 else "eve", created_at=NOW + i * SECOND))
            for i in range(20)
        ]
        wanted = [s.id for s in made if s.owner == "ada"]
        query = SessionQuery(owner="ada", limit=3)
        seen: list[SessionId] = []
        while True:
            page = await store.list(query)
            assert len(page.sessions) <= 3
            seen += [s.id for s in page.sessions]
            if page.cursor is None:
                break
            last = page.sessions[-1]
            await store.delete(last.id, revision=last.revision)  # the cursor's own session goes away
            await store.insert(sample_session(created_at=NOW - SECOND))  # behind the cursor
            query = replace(query, cursor=page.cursor)
        assert seen == wanted

    async def test_a_full_last_page_has_no_cursor(self, store: Store) -> None:
        for _ in range(4):
            await store.insert(sample_session())
        assert (await store.list(SessionQuery(limit=4))).cursor is None

    @pytest.mark.parametrize("cursor", ["", "nonsense", "%%%", "☃", "MjAyNg=="])
    async def test_a_foreign_cursor_is_invalid(self, store: Store, cursor: str) -> None:
        with pytest.raises(Invalid, match="cursor"):
            await store.list(SessionQuery(cursor=cursor))

    @pytest.mark.parametrize("limit", [-1, 0, 1001])
    async def test_a_limit_out_of_range_is_invalid(self, store: Store, limit: int) -> None:
        with pytest.raises(Invalid, match="limit"):
            await store.list(SessionQuery(limit=limit))

    # Activity

    async def test_activity_only_moves_forward_and_is_no_change(self, store: Store) -> None:
        session = await store.insert(sample_session())
        later = NOW + timedelta(seconds=5, microseconds=7)
        await store.touch({session.id: later, SessionId("nobody"): later})
        assert await store.get(session.id) == replace(session, last_activity_at=later)
        await store.touch({session.id: later - SECOND})
        assert await store.get(session.id) == replace(session, last_activity_at=later)

    async def test_replacing_what_was_read_before_keeps_newer_activity(self, store: Store) -> None:
        session = await store.insert(sample_session())
        await store.touch({session.id: NOW + SECOND})
        changed = await store.replace(replace(session, message="hello"))
        assert changed.last_activity_at == NOW + SECOND
        assert await store.get(session.id) == changed

    # Deadlines

    async def test_due_sessions_are_leased_earliest_first(self, store: Store) -> None:
        for id, due in (("b", 2), ("c", 3), ("a", 1), ("later", 60), ("never", None)):
            due_at = None if due is None else NOW + due * SECOND
            await store.insert(sample_session(id, due_at=due_at))
        now = NOW + 3 * SECOND
        assert await _lease(store, now, limit=2) == ["a", "b"]
        assert await _lease(store, now, limit=2) == ["c"]
        assert await _lease(store, now) == []

    async def test_a_lease_hides_its_session_from_everybody_until_it_ends(self, store: Store) -> None:
        await store.insert(sample_session("a", due_at=NOW))
        assert await _lease(store, NOW, owner="me") == ["a"]
        almost = NOW + LEASE - timedelta(microseconds=1)
        assert await _lease(store, almost, owner="you") == []
        assert await _lease(store, almost, owner="me") == []
        assert await _lease(store, NOW + LEASE, owner="you") == ["a"]

    async def test_replacing_ends_a_lease(self, store: Store) -> None:
        session = await store.insert(sample_session("a", due_at=NOW))
        assert await _lease(store, NOW) == ["a"]
        session = await store.replace(session)
        assert await _lease(store, NOW) == ["a"]
        session = await store.replace(replace(session, due_at=NOW + 2 * SECOND))
        assert await _lease(store, NOW + SECOND) == []
        assert await _lease(store, NOW + 2 * SECOND) == ["a"]
        await store.replace(replace(session, due_at=None))
        assert await _lease(store, NOW + timedelta(days=999)) == []

    async def test_touching_keeps_the_deadline_and_the_lease(self, store: Store) -> None:
        session = await store.insert(sample_session("a", due_at=NOW))
        assert await _lease(store, NOW) == ["a"]
        await store.touch({session.id: NOW + SECOND})
        assert await _lease(store, NOW) == []
        assert await store.next_due() == NOW

    async def test_a_leased_session_carries_its_newest_activity_and_revision(self, store: Store) -> None:
        session = await store.insert(sample_session("a", due_at=NOW))
        await store.touch({session.id: NOW + SECOND})
        leased = await store.lease_due(now=NOW, owner="me", lease=LEASE, limit=10)
        assert list(leased) == [await store.get(session.id)]

    async def test_no_two_owners_lease_one_session(self, store: Store) -> None:
        for i in range(20):
            await store.insert(sample_session(due_at=NOW - i * SECOND))
        taken = await asyncio.gather(*(_lease(store, NOW, owner=str(i), limit=3) for i in range(10)))
        ids = [id for batch in taken for id in batch]
        assert len(ids) == len(set(ids)) == 20

    async def test_next_due_is_the_earliest_of_all_leased_or_not(self, store: Store) -> None:
        assert await store.next_due() is None
        first = await store.insert(sample_session(due_at=NOW))
        second = await store.insert(sample_session(due_at=NOW + SECOND))
        await store.insert(sample_session(due_at=None))
        assert await store.next_due() == NOW
        await _lease(store, NOW)
        assert await store.next_due() == NOW
        await store.delete(first.id, revision=1)
        assert await store.next_due() == NOW + SECOND
        await store.replace(replace(second, due_at=None))
        assert await store.next_due() is None

    async def test_deleted_sessions_are_never_due(self, store: Store) -> None:
        session = await store.insert(sample_session(due_at=NOW))
        await _lease(store, NOW)
        await store.delete(session.id, revision=1)
        assert await _lease(store, NOW + timedelta(days=1)) == []

    # Changes

    async def test_a_subscriber_hears_of_every_change_from_its_call_on(self, store: Store) -> None:
        await store.insert(sample_session("before"))
        changes = store.changes()
        inserted = await store.insert(sample_session("a"))
        assert await _next(changes) == "a"
        await store.replace(inserted)
        assert await _next(changes) == "a"
        await store.delete(inserted.id, revision=2)
        assert await _next(changes) == "a"
        await store.put_warm(sample_warm())
        await store.claim_warm(sample_session("claimed"))
        assert await _next(changes) == "claimed"

    async def test_a_waiting_subscriber_is_woken(self, store: Store) -> None:
        changes = store.changes()
        async with asyncio.TaskGroup() as tasks:
            heard = tasks.create_task(_next(changes))
            await asyncio.sleep(0)
            await store.insert(sample_session("a"))
        assert heard.result() == "a"

    async def test_a_slow_subscriber_hears_all_or_that_it_missed_some(self, store: Store) -> None:
        changes = store.changes()
        made = {(await store.insert(sample_session())).id for _ in range(100)}
        heard: set[SessionId] = set()
        while made - heard:
            id = await _next(changes)
            if id is None:
                break
            heard.add(id)

    async def test_every_subscriber_hears(self, store: Store) -> None:
        readers = [store.changes() for _ in range(3)]
        await store.insert(sample_session("a"))
        assert [await _next(reader) for reader in readers] == ["a"] * 3

    # Reservations

    async def test_a_key_stands_for_its_first_session_until_it_expires(self, store: Store) -> None:
        first = _reservation("first")
        assert await store.reserve(first, now=NOW) == first
        assert await store.reserve(_reservation("second"), now=NOW + SECOND) == first
        assert await store.reserve(_reservation("other", key="k-2"), now=NOW) == _reservation(
            "other", key="k-2"
        )
        third = _reservation("third", expires_at=first.expires_at + SECOND)
        assert await store.reserve(third, now=first.expires_at) == third

    async def test_one_of_many_reservations_of_a_key_wins(self, store: Store) -> None:
        tries = (store.reserve(_reservation(str(i)), now=NOW) for i in range(8))
        assert len({r.session_id for r in await asyncio.gather(*tries)}) == 1

    async def test_a_key_may_be_any_text(self, store: Store) -> None:
        for key in ("", "☃", "\x00", "\ud800", "x" * 5000):
            assert (await store.reserve(_reservation("s", key=key), now=NOW)).key == key
        await store.check()

    # Pools

    async def test_pool_entries_are_listed_oldest_first_and_updated_by_id(self, store: Store) -> None:
        new = sample_warm("new", created_at=NOW + SECOND)
        starting = sample_warm("old", state=WarmState.STARTING)
        other = sample_warm("other", template=OTHER, created_at=NOW - SECOND)
        for entry in (new, starting, other):
            await store.put_warm(entry)
        assert list(await store.list_warm()) == [other, starting, new]
        assert list(await store.list_warm(KEY)) == [starting, new]
        ready = sample_warm("old")
        await store.put_warm(ready)
        assert list(await store.list_warm(KEY)) == [ready, new]

    async def test_an_entry_is_removed_once(self, store: Store) -> None:
        await store.put_warm(sample_warm("a"))
        answers = await asyncio.gather(*(store.remove_warm(SandboxId("a")) for _ in range(4)))
        assert sorted(answers) == [False, False, False, True]
        assert list(await store.list_warm()) == []

    async def test_a_claim_moves_the_oldest_ready_sandbox_into_the_session(self, store: Store) -> None:
        oldest = sample_warm("b", created_at=NOW - SECOND)
        await store.put_warm(sample_warm("a"))
        await store.put_warm(oldest)
        await store.put_warm(sample_warm("s", state=WarmState.STARTING, created_at=NOW - 9 * SECOND))
        wanted = sample_session(phase=Phase.RUNNING, revision=9)
        claimed = await store.claim_warm(wanted)
        assert claimed == replace(wanted, sandbox=oldest.sandbox, from_pool=True, revision=1)
        assert claimed == await store.get(wanted.id)
        assert [e.id for e in await store.list_warm()] == ["s", "a"]
        assert not await store.remove_warm(oldest.id)

    async def test_a_claimed_session_is_due_as_it_says(self, store: Store) -> None:
        await store.put_warm(sample_warm())
        await store.claim_warm(sample_session("a", due_at=NOW))
        assert await _lease(store, NOW) == ["a"]

    async def test_only_a_fitting_entry_is_claimed_and_a_miss_changes_nothing(self, store: Store) -> None:
        await store.put_warm(sample_warm(generation=2))
        await store.put_warm(sample_warm(template=OTHER))
        await store.put_warm(sample_warm(state=WarmState.STARTING))
        before = await store.list_warm()
        session = sample_session()
        assert await store.claim_warm(session) is None
        assert await store.list_warm() == before
        with pytest.raises(SessionNotFound):
            await store.get(session.id)

    async def test_a_claim_for_a_session_that_exists_takes_nothing(self, store: Store) -> None:
        session = await store.insert(sample_session())
        await store.put_warm(sample_warm())
        with pytest.raises(AlreadyExists):
            await store.claim_warm(session)
        assert len(await store.list_warm()) == 1

    async def test_no_sandbox_is_claimed_twice(self, store: Store) -> None:
        entries = {(entry := sample_warm()).id: entry for _ in range(10)}
        await asyncio.gather(*map(store.put_warm, entries.values()))
        claims = await asyncio.gather(*(store.claim_warm(sample_session()) for _ in range(25)))
        got = [s.sandbox.id for s in claims if s is not None and s.sandbox is not None]
        assert len(got) == len(set(got)) == 10
        assert set(got) == set(entries)
        assert list(await store.list_warm()) == []

    async def test_an_entry_is_claimed_or_removed_never_both(self, store: Store) -> None:
        for _ in range(10):
            entry = sample_warm()
            await store.put_warm(entry)
            claim, removed = await asyncio.gather(
                store.claim_warm(sample_session()), store.remove_warm(entry.id)
            )
            assert (claim is None) == removed

    async def test_a_session_s_sandbox_cannot_enter_a_pool(self, store: Store) -> None:
        entry = sample_warm()
        await store.put_warm(entry)
        session = await store.claim_warm(sample_session())
        assert session is not None
        with pytest.raises(Conflict):
            await store.put_warm(entry)
        await store.delete(session.id, revision=1)
        assert list(await store.list_warm()) == []

    # Templates

    async def test_a_template_s_generation_grows_when_anything_differs(self, store: Store) -> None:
        template = full_template()
        first = await store.put_template(template)
        assert first == replace(template, generation=1)
        assert await store.put_template(template) == first
        assert await store.put_template(first) == first
        second = await store.put_template(replace(template, manifest={}))
        assert second == replace(template, manifest={}, generation=2)
        assert await store.get_template(template.key) == second

    async def test_a_deleted_template_is_gone_and_its_generations_are_not_used_again(
        self, store: Store
    ) -> None:
        template = await store.put_template(sample_template())
        await store.delete_template(template.key)
        with pytest.raises(TemplateNotFound):
            await store.get_template(template.key)
        with pytest.raises(TemplateNotFound):
            await store.delete_template(template.key)
        assert (await store.put_template(template)).generation == 2

    async def test_templates_are_listed_by_namespace_and_name(self, store: Store) -> None:
        keys = [
            TemplateKey(Kind.CODE_INTERPRETER, "b", "a"),
            TemplateKey(Kind.AGENT_RUNTIME, "a", "z"),
            TemplateKey(Kind.AGENT_RUNTIME, "a", "b"),
            TemplateKey(Kind.CODE_INTERPRETER, "a", "c"),
        ]
        for key in keys:
            await store.put_template(sample_template(key))
        assert [t.key for t in await store.list_templates()] == [keys[2], keys[3], keys[1], keys[0]]
        assert [t.key for t in await store.list_templates(kind=Kind.AGENT_RUNTIME)] == [keys[2], keys[1]]
        assert [t.key for t in await store.list_templates(namespace="b")] == [keys[0]]
        assert list(await store.list_templates(kind=Kind.AGENT_RUNTIME, namespace="b")) == []

    # Callers that go away

    async def test_a_cancelled_write_is_made_or_not_and_the_store_goes_on(self, store: Store) -> None:
        writes = [asyncio.ensure_future(store.insert(sample_session(str(i)))) for i in range(8)]
        await asyncio.sleep(0)
        for write in writes[::2]:
            write.cancel()
        await asyncio.wait(writes)
        await store.check()
        listed = {s.id for s in (await store.list(SessionQuery())).sessions}
        assert listed >= {w.result().id for w in writes if not w.cancelled()}
        await store.insert(sample_session("after"))


class DurableStoreContract(StoreContract):
    """Run against every store that outlives its process, on top of `StoreContract`."""

    async def test_everything_acknowledged_is_there_when_it_is_opened_again(
        self, open_store: OpenStore
    ) -> None:
        async with open_store() as store:
            session = await store.replace(await store.insert(full_session()))
            gone = await store.insert(sample_session())
            await store.delete(gone.id, revision=1)
            template = await store.put_template(full_template())
            await store.put_template(sample_template(OTHER))
            await store.delete_template(OTHER)
            claimed_entry, kept = sample_warm("claimed", created_at=NOW - SECOND), sample_warm("kept")
            starting = sample_warm("starting", state=WarmState.STARTING, created_at=NOW + SECOND)
            for entry in (claimed_entry, kept, starting):
                await store.put_warm(entry)
            claimed = await store.claim_warm(sample_session("c", created_at=NOW + SECOND))
            assert claimed is not None
            reservation = await store.reserve(_reservation("first", key="☃ \ud800"), now=NOW)
            await store.touch({session.id: NOW + timedelta(hours=1)})
        async with open_store() as store:
            session = replace(session, last_activity_at=NOW + timedelta(hours=1))
            assert (await store.list(SessionQuery())).sessions == (session, claimed)
            assert list(await store.list_warm()) == [kept, starting]
            assert list(await store.list_templates()) == [template]
            again = _reservation("second", key=reservation.key)
            assert await store.reserve(again, now=NOW) == reservation
            assert (await store.put_template(sample_template(OTHER))).generation == 2
            assert await store.next_due() == session.due_at
            with pytest.raises(Conflict):
                await store.put_warm(claimed_entry)
            assert (await store.replace(session)).revision == session.revision + 1


async def _lease(store: Store, now: datetime, *, owner: str = "me", limit: int = 100) -> list[SessionId]:
    return [s.id for s in await store.lease_due(now=now, owner=owner, lease=LEASE, limit=limit)]


async def _next(changes: AsyncIterator[SessionId | None]) -> SessionId | None:
    async with asyncio.timeout(10):
        return await anext(changes)


def _reservation(session: str, *, key: str = "k-1", expires_at: datetime | None = None) -> Reservation:
    return Reservation(
        key=key,
        fingerprint="sha256:abc",
        session_id=SessionId(session),
        expires_at=expires_at or NOW + timedelta(hours=24),
    )
