"""What every `ports.store.Store` does, as tests. Subclass `StoreContract` and give `open_store`.

A store that outlives its process subclasses `DurableStoreContract` instead. Needs pytest, with
anyio's plugin (installed with anyio).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import AlreadyExists, CapacityExhausted, Conflict
from agentcube.model.ids import SessionId
from agentcube.model.pool import WarmState
from agentcube.ports.store import KeyTaken, Quota, SessionQuery, Store
from agentcube.testing.pool_store_contract import PoolStoreContract, TemplateStoreContract
from agentcube.testing.samples import (
    NOW,
    full_session,
    full_template,
    sample_session,
    sample_template,
    sample_warm,
)
from agentcube.testing.session_store_contract import SessionStoreContract
from agentcube.testing.store_suite import LEASE, OTHER, SECOND, OpenStore, sample_reservation


class StoreContract(SessionStoreContract, PoolStoreContract, TemplateStoreContract):
    """Run against every store."""

    async def test_a_working_store_checks_out(self, store: Store) -> None:
        await store.check()

    # Reservations

    async def test_a_key_stands_for_its_first_session_until_it_expires(self, store: Store) -> None:
        first = sample_reservation("first")
        await store.insert(sample_session("first"), reservation=first)
        for make in (store.insert, store.claim_warm):
            with pytest.raises(KeyTaken) as refused:
                await make(
                    sample_session("second", created_at=first.expires_at - SECOND),
                    reservation=sample_reservation("second"),
                )
            assert refused.value.reservation == first
        await store.insert(sample_session("other"), reservation=sample_reservation("other", key="k-2"))
        await store.delete(SessionId("first"), revision=1)  # the key still stands for it
        third = sample_reservation("third", expires_at=first.expires_at + SECOND)
        with pytest.raises(KeyTaken):
            await store.insert(sample_session("third"), reservation=third)
        await store.insert(sample_session("third", created_at=first.expires_at), reservation=third)
        assert [s.id for s in (await store.list(SessionQuery())).sessions] == ["other", "third"]

    async def test_one_of_many_sessions_of_a_key_is_made(self, store: Store) -> None:
        for _ in range(4):
            await store.put_warm(sample_warm())
        tries = [
            store.insert(sample_session(f"i{i}"), reservation=sample_reservation(f"i{i}")) for i in range(4)
        ]
        claims = [
            store.claim_warm(sample_session(f"c{i}"), reservation=sample_reservation(f"c{i}"))
            for i in range(4)
        ]
        outcomes = await asyncio.gather(*tries, *claims, return_exceptions=True)
        made = [o for o in outcomes if not isinstance(o, BaseException)]
        told = [o.reservation.session_id for o in outcomes if isinstance(o, KeyTaken)]
        assert len(made) == 1
        assert made[0] is not None
        assert told == [made[0].id] * 7
        assert len((await store.list(SessionQuery())).sessions) == 1

    async def test_what_is_not_made_has_no_key(self, store: Store) -> None:
        await store.insert(sample_session("there"))
        for refused, session, quota in (
            (AlreadyExists, sample_session("there"), Quota()),
            (CapacityExhausted, sample_session("more"), Quota(total=1)),
        ):
            with pytest.raises(refused):
                await store.insert(session, quota=quota, reservation=sample_reservation("more"))
        assert await store.claim_warm(sample_session("more"), reservation=sample_reservation("more")) is None
        await store.insert(sample_session("more"), reservation=sample_reservation("more"))

    async def test_a_key_may_be_any_text(self, store: Store) -> None:
        for key in ("", "☃", "\x00", "\ud800", "x" * 5000):
            await store.insert(sample_session(), reservation=sample_reservation("s", key=key))
            with pytest.raises(KeyTaken) as taken:
                await store.insert(sample_session(), reservation=sample_reservation("t", key=key))
            assert taken.value.reservation.key == key
        await store.check()

    # Roles

    async def test_a_role_is_one_owner_s_until_its_lease_ends(self, store: Store) -> None:
        async def leased(owner: str, after: timedelta) -> bool:
            return await store.lease_role("keeper", owner=owner, now=NOW + after, lease=LEASE)

        assert await leased("me", timedelta())
        assert not await leased("you", LEASE - SECOND)
        assert await leased("me", LEASE - SECOND)  # for longer
        assert not await leased("you", LEASE + SECOND)
        assert await store.lease_role("other", owner="you", now=NOW, lease=LEASE)
        assert await leased("you", 2 * LEASE - SECOND)
        assert not await leased("me", 2 * LEASE)

    async def test_a_role_that_was_left_is_anybody_s(self, store: Store) -> None:
        assert await store.lease_role("keeper", owner="me", now=NOW, lease=LEASE)
        await store.leave_role("keeper", owner="you")
        assert not await store.lease_role("keeper", owner="you", now=NOW, lease=LEASE)
        await store.leave_role("keeper", owner="me")
        assert await store.lease_role("keeper", owner="you", now=NOW, lease=LEASE)

    async def test_one_of_many_has_the_role(self, store: Store) -> None:
        tries = (store.lease_role("keeper", owner=str(i), now=NOW, lease=LEASE) for i in range(8))
        assert sum(await asyncio.gather(*tries)) == 1

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
            reservation = sample_reservation(session.id, key="☃ \ud800")
            keyed = await store.insert(
                sample_session("keyed", created_at=NOW + 2 * SECOND), reservation=reservation
            )
            await store.touch({session.id: NOW + timedelta(hours=1)})
        async with open_store() as store:
            session = replace(session, last_activity_at=NOW + timedelta(hours=1))
            assert (await store.list(SessionQuery())).sessions == (session, claimed, keyed)
            assert list(await store.list_warm()) == [kept, starting]
            assert list(await store.list_templates()) == [template]
            with pytest.raises(KeyTaken) as taken:
                await store.insert(sample_session(), reservation=sample_reservation("s", key=reservation.key))
            assert taken.value.reservation == reservation
            assert (await store.put_template(sample_template(OTHER))).generation == 2
            with pytest.raises(Conflict):
                await store.put_warm(claimed_entry)
            assert (await store.replace(session)).revision == session.revision + 1
