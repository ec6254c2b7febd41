"""What every `ports.store.SessionStore` does, as tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import (
    AlreadyExists,
    CapacityExhausted,
    Invalid,
    LimitExceeded,
    SessionNotFound,
    StaleRevision,
)
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.template import Kind
from agentcube.ports.store import Quota, SessionQuery, Store
from agentcube.testing.samples import NOW, full_session, sample_session, sample_warm
from agentcube.testing.store_suite import LEASE, OTHER, SECOND, StoreSuite, lease_ids, next_change


class SessionStoreContract(StoreSuite):
    """Sessions, listings, activity, deadlines and changes."""

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

    async def test_a_relaxed_change_is_seen_as_any_other(self, store: Store) -> None:
        session = await store.insert(sample_session())
        changed = await store.replace(replace(session, message="relaxed"), relaxed=True)
        assert await store.get(session.id) == changed == replace(session, message="relaxed", revision=2)
        with pytest.raises(StaleRevision):
            await store.replace(session, relaxed=True)
        assert (await store.replace(changed)).revision == 3

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

        async def count(*, relaxed: bool) -> None:
            while True:
                seen = await store.get(session.id)
                try:
                    await store.replace(replace(seen, message=str(int(seen.message) + 1)), relaxed=relaxed)
                except StaleRevision:
                    continue
                return

        await asyncio.gather(*(count(relaxed=bool(i % 2)) for i in range(16)))
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

    # Quotas

    async def test_an_owner_has_as_many_sessions_as_the_quota_says(self, store: Store) -> None:
        quota = Quota(owner=2)
        first = await store.insert(sample_session(owner="a b"), quota=quota)
        await store.insert(sample_session(owner="a b"), quota=quota)
        await store.insert(sample_session(owner=""), quota=quota)
        await store.replace(replace(first, message="still one"))
        with pytest.raises(LimitExceeded):
            await store.insert(sample_session(owner="a b"), quota=quota)
        await store.delete(first.id, revision=2)
        await store.insert(sample_session(owner="a b"), quota=quota)

    async def test_there_are_as_many_sessions_as_the_quota_says(self, store: Store) -> None:
        quota = Quota(total=2)
        await store.insert(sample_session("a", owner="ada"), quota=quota)
        await store.insert(sample_session("b", owner="eve"), quota=quota)
        with pytest.raises(CapacityExhausted):
            await store.insert(sample_session("c", owner="bob"), quota=quota)
        with pytest.raises(AlreadyExists):
            await store.insert(sample_session("a"), quota=quota)
        await store.insert(sample_session("c"))  # without one it is as it was

    async def test_of_many_at_once_the_quota_lets_in_as_many_as_it_says(self, store: Store) -> None:
        tries = (store.insert(sample_session(), quota=Quota(owner=3)) for _ in range(8))
        outcomes = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(isinstance(o, LimitExceeded) for o in outcomes) == 5
        assert len((await store.list(SessionQuery())).sessions) == 3

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
        assert await lease_ids(store, now, limit=2) == ["a", "b"]
        assert await lease_ids(store, now, limit=2) == ["c"]
        assert await lease_ids(store, now) == []

    async def test_a_lease_hides_its_session_from_everybody_until_it_ends(self, store: Store) -> None:
        await store.insert(sample_session("a", due_at=NOW))
        assert await lease_ids(store, NOW, owner="me") == ["a"]
        almost = NOW + LEASE - timedelta(microseconds=1)
        assert await lease_ids(store, almost, owner="you") == []
        assert await lease_ids(store, almost, owner="me") == []
        assert await lease_ids(store, NOW + LEASE, owner="you") == ["a"]

    async def test_replacing_ends_a_lease(self, store: Store) -> None:
        session = await store.insert(sample_session("a", due_at=NOW))
        assert await lease_ids(store, NOW) == ["a"]
        session = await store.replace(session)
        assert await lease_ids(store, NOW) == ["a"]
        session = await store.replace(replace(session, due_at=NOW + 2 * SECOND))
        assert await lease_ids(store, NOW + SECOND) == []
        assert await lease_ids(store, NOW + 2 * SECOND) == ["a"]
        await store.replace(replace(session, due_at=None))
        assert await lease_ids(store, NOW + timedelta(days=999)) == []

    async def test_touching_keeps_the_deadline_and_the_lease(self, store: Store) -> None:
        session = await store.insert(sample_session("a", due_at=NOW))
        assert await lease_ids(store, NOW) == ["a"]
        await store.touch({session.id: NOW + SECOND})
        assert await lease_ids(store, NOW) == []
        assert await lease_ids(store, NOW + LEASE) == ["a"]

    async def test_a_leased_session_carries_its_newest_activity_and_revision(self, store: Store) -> None:
        session = await store.insert(sample_session("a", due_at=NOW))
        await store.touch({session.id: NOW + SECOND})
        leased = await store.lease_due(now=NOW, owner="me", lease=LEASE, limit=10)
        assert list(leased) == [await store.get(session.id)]

    async def test_no_two_owners_lease_one_session(self, store: Store) -> None:
        for i in range(20):
            await store.insert(sample_session(due_at=NOW - i * SECOND))
        taken = await asyncio.gather(*(lease_ids(store, NOW, owner=str(i), limit=3) for i in range(10)))
        ids = [id for batch in taken for id in batch]
        assert len(ids) == len(set(ids)) == 20

    async def test_deleted_sessions_are_never_due(self, store: Store) -> None:
        session = await store.insert(sample_session(due_at=NOW))
        await lease_ids(store, NOW)
        await store.delete(session.id, revision=1)
        assert await lease_ids(store, NOW + timedelta(days=1)) == []

    # Changes

    async def test_a_subscriber_hears_of_every_change_from_its_call_on(self, store: Store) -> None:
        await store.insert(sample_session("before"))
        changes = store.changes()
        inserted = await store.insert(sample_session("a"))
        assert await next_change(changes) == "a"
        await store.replace(inserted)
        assert await next_change(changes) == "a"
        await store.delete(inserted.id, revision=2)
        assert await next_change(changes) == "a"
        await store.put_warm(sample_warm())
        await store.claim_warm(sample_session("claimed"))
        assert await next_change(changes) == "claimed"

    async def test_a_waiting_subscriber_is_woken(self, store: Store) -> None:
        changes = store.changes()
        async with asyncio.TaskGroup() as tasks:
            heard = tasks.create_task(next_change(changes))
            await asyncio.sleep(0)
            await store.insert(sample_session("a"))
        assert heard.result() == "a"

    async def test_a_slow_subscriber_hears_all_or_that_it_missed_some(self, store: Store) -> None:
        changes = store.changes()
        made = {(await store.insert(sample_session())).id for _ in range(100)}
        heard: set[SessionId] = set()
        while made - heard:
            id = await next_change(changes)
            if id is None:
                break
            heard.add(id)

    async def test_every_subscriber_hears(self, store: Store) -> None:
        readers = [store.changes() for _ in range(3)]
        await store.insert(sample_session("a"))
        assert [await next_change(reader) for reader in readers] == ["a"] * 3
