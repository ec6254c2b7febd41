"""What every `ports.store.PoolStore` and `ports.store.TemplateStore` does, as tests."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from agentcube.errors import (
    AlreadyExists,
    CapacityExhausted,
    Conflict,
    LimitExceeded,
    SessionNotFound,
    TemplateNotFound,
)
from agentcube.model.ids import SandboxId
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmState
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.store import Quota, Store
from agentcube.testing.samples import (
    KEY,
    NOW,
    full_template,
    sample_session,
    sample_template,
    sample_warm,
)
from agentcube.testing.store_suite import OTHER, SECOND, StoreSuite, lease_ids


class PoolStoreContract(StoreSuite):
    """Warm sandboxes: in the pool or in one session, never both."""

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

    async def test_an_update_finds_its_entry_or_changes_nothing(self, store: Store) -> None:
        await store.put_warm(sample_warm("a", state=WarmState.STARTING))
        ready = sample_warm("a")
        assert await store.update_warm(ready)
        assert list(await store.list_warm()) == [ready]
        assert await store.claim_warm(sample_session()) is not None
        assert not await store.update_warm(ready)
        assert not await store.update_warm(sample_warm("b"))
        assert list(await store.list_warm()) == []
        assert await store.claim_warm(sample_session()) is None

    async def test_who_listens_hears_that_pools_changed(self, store: Store) -> None:
        heard = store.pool_changes()
        for change in (
            store.put_warm(sample_warm("a")),
            store.update_warm(sample_warm("a")),
            store.claim_warm(sample_session()),
            store.put_template(sample_template()),
            store.delete_template(sample_template().key),
        ):
            await change
            async with asyncio.timeout(10):
                await anext(heard)

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
        assert await lease_ids(store, NOW) == ["a"]

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

    async def test_a_claim_beyond_the_quota_takes_nothing(self, store: Store) -> None:
        await store.insert(sample_session(owner="ada"))
        await store.put_warm(sample_warm())
        for quota, error in ((Quota(total=1), CapacityExhausted), (Quota(owner=1), LimitExceeded)):
            with pytest.raises(error):
                await store.claim_warm(sample_session(owner="ada"), quota=quota)
        assert len(await store.list_warm()) == 1
        assert await store.claim_warm(sample_session(owner="eve"), quota=Quota(owner=1)) is not None

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


class TemplateStoreContract(StoreSuite):
    """Templates and their generations."""

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
