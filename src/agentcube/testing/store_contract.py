"""What every `ports.store.Store` does, as tests. Subclass `StoreContract` and give `open_store`.

A store that outlives its process subclasses `DurableStoreContract` instead. Needs pytest, with
anyio's plugin (installed with anyio).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from agentcube.errors import Conflict
from agentcube.model.pool import WarmState
from agentcube.ports.store import SessionQuery, Store
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
from agentcube.testing.store_suite import OTHER, SECOND, OpenStore, sample_reservation


class StoreContract(SessionStoreContract, PoolStoreContract, TemplateStoreContract):
    """Run against every store."""

    async def test_a_working_store_checks_out(self, store: Store) -> None:
        await store.check()

    # Reservations

    async def test_a_key_stands_for_its_first_session_until_it_expires(self, store: Store) -> None:
        first = sample_reservation("first")
        assert await store.reserve(first, now=NOW) == first
        assert await store.reserve(sample_reservation("second"), now=NOW + SECOND) == first
        assert await store.reserve(sample_reservation("other", key="k-2"), now=NOW) == sample_reservation(
            "other", key="k-2"
        )
        third = sample_reservation("third", expires_at=first.expires_at + SECOND)
        assert await store.reserve(third, now=first.expires_at) == third

    async def test_one_of_many_reservations_of_a_key_wins(self, store: Store) -> None:
        tries = (store.reserve(sample_reservation(str(i)), now=NOW) for i in range(8))
        assert len({r.session_id for r in await asyncio.gather(*tries)}) == 1

    async def test_a_key_may_be_any_text(self, store: Store) -> None:
        for key in ("", "☃", "\x00", "\ud800", "x" * 5000):
            assert (await store.reserve(sample_reservation("s", key=key), now=NOW)).key == key
        await store.check()

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
            reservation = await store.reserve(sample_reservation("first", key="☃ \ud800"), now=NOW)
            await store.touch({session.id: NOW + timedelta(hours=1)})
        async with open_store() as store:
            session = replace(session, last_activity_at=NOW + timedelta(hours=1))
            assert (await store.list(SessionQuery())).sessions == (session, claimed)
            assert list(await store.list_warm()) == [kept, starting]
            assert list(await store.list_templates()) == [template]
            again = sample_reservation("second", key=reservation.key)
            assert await store.reserve(again, now=NOW) == reservation
            assert (await store.put_template(sample_template(OTHER))).generation == 2
            assert await store.next_due() == session.due_at
            with pytest.raises(Conflict):
                await store.put_warm(claimed_entry)
            assert (await store.replace(session)).revision == session.revision + 1
