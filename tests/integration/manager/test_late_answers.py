"""Calls whose answer is lost, late or never comes: what was asked for is done once, and to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

from agentcube.drivers.fake import FakeDriver, FakeMachine
from agentcube.errors import AgentCubeError, DriverFailed, StartFailed, StoreFailed, SuspendFailed
from agentcube.manager.creation import Repeatable, Wish
from agentcube.manager.manager import Manager
from agentcube.manager.orphans import Orphans
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.sandbox import Sandbox
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.store import SessionQuery
from agentcube.ports.tokens import LOCAL
from agentcube.runtime.keys import RsaSigner
from agentcube.stores.memory import MemoryStore
from agentcube.testing.eventually import eventually

pytestmark = pytest.mark.anyio

KEY = TemplateKey(Kind.CODE_INTERPRETER, "default", "t")


class LostAnswer(MemoryStore):
    """The first time that a pool's sandbox is told to be ready, the answer to that is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.lost = asyncio.Event()
        self.go_on = asyncio.Event()

    async def update_warm(self, entry: WarmSandbox) -> bool:
        made = await super().update_warm(entry)
        if not self.lost.is_set():
            self.lost.set()
            await self.go_on.wait()
            raise StoreFailed("the connection was lost")
        return made


def _warm(store: MemoryStore) -> bool:
    """Whether every sandbox of the pool can be claimed."""
    return all(entry.state is WarmState.READY for entry in store._live.warm.values())


@contextlib.asynccontextmanager
async def managing(
    store: MemoryStore, driver: FakeDriver, key: RSAPrivateKey, *, pool: int = 0, **settings: Any
) -> AsyncIterator[Manager]:
    manager = Manager(ManagerSettings(**settings), store=store, driver=driver, signer=RsaSigner(key))
    running = asyncio.ensure_future(manager.run())
    await manager.recovered()
    spec = {"template": {}, "warmPoolSize": pool}
    await manager.service.catalog.put(KEY, {"kind": "CodeInterpreter", "spec": spec})
    yield manager
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


async def test_a_pools_sandbox_that_was_claimed_is_not_destroyed_for_a_lost_answer(
    key: RSAPrivateKey,
) -> None:
    store, machine = LostAnswer(), FakeMachine()
    async with managing(store, FakeDriver(machine), key, pool=1) as manager:
        await store.lost.wait()
        session = await manager.service.sessions.create(Wish(template=KEY), LOCAL)
        assert session.from_pool and session.sandbox is not None  # noqa: PT018
        store.go_on.set()
        await eventually(
            lambda: len(machine.boxes) == 2
        )  # the pool's next one: the lost answer was dealt with
        assert session.sandbox.id in machine.boxes


async def test_a_suspend_that_comes_after_it_was_undone_does_nothing(key: RSAPrivateKey) -> None:
    late: list[asyncio.Future[Any]] = []
    go_on = asyncio.Event()

    class Far(FakeDriver):
        """A machine's call goes on when nobody waits for it any more."""

        async def suspend(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
            async def call() -> Sandbox:
                await go_on.wait()
                return await super(Far, self).suspend(sandbox, fence=fence)

            late.append(asyncio.ensure_future(call()))
            return await asyncio.shield(late[-1])

    store, machine = MemoryStore(), FakeMachine()
    async with managing(store, Far(machine), key, sleep_timeout_s=0.05) as manager:
        sessions = manager.service.sessions
        session = await sessions.create(Wish(template=KEY), LOCAL)
        with pytest.raises(SuspendFailed):
            await sessions.suspend(session.id, LOCAL)
        go_on.set()
        with pytest.raises(AgentCubeError):
            await late[0]
        assert (await store.get(session.id)).phase is Phase.READY
        assert session.sandbox is not None
        assert not machine.boxes[session.sandbox.id].asleep
        assert (await sessions.suspend(session.id, LOCAL)).phase is Phase.PAUSED  # and the next one counts


async def test_a_revival_that_comes_after_another_manager_suspended_does_nothing(key: RSAPrivateKey) -> None:
    go_on = asyncio.Event()

    class Held(FakeDriver):
        """Of a manager that stands still: its calls arrive much later."""

        async def suspend(self, sandbox: Sandbox, *, fence: int) -> Sandbox:
            await go_on.wait()
            raise DriverFailed("no luck")

    async def standing_still(id: SessionId, flight: Any) -> None:
        """It neither renews its hold nor hears that another has it."""

    async def is_paused() -> bool:
        return (await store.get(session.id)).phase is Phase.PAUSED

    store, machine = MemoryStore(), FakeMachine()
    lease: dict[str, Any] = {"replicated": True, "lease_s": 0.3}
    held, other = Held(machine), FakeDriver(machine)
    async with managing(store, held, key, **lease) as manager:
        session = await manager.service.sessions.create(Wish(template=KEY), LOCAL)
        assert session.sandbox is not None
        manager._reconciler._renew = standing_still  # type: ignore[method-assign]
        suspending = asyncio.ensure_future(manager.service.sessions.suspend(session.id, LOCAL))
        async with managing(store, other, key, **lease):
            await eventually(is_paused)
            go_on.set()
            await eventually(lambda: ("resume", session.sandbox.id) in held.calls)  # type: ignore[union-attr]
            assert (await suspending).phase is Phase.PAUSED
            assert machine.boxes[session.sandbox.id].asleep


async def test_a_start_is_not_destroyed_that_may_still_be_wanted(key: RSAPrivateKey) -> None:
    """Its failure could not be stored, so it is tried again: what was asked before must not hurt that."""
    go_on = asyncio.Event()
    late: list[asyncio.Future[None]] = []

    class Far(FakeDriver):
        """Whoever destroys hears that it failed, and it is done all the same, much later."""

        async def destroy(self, id: SandboxId) -> None:
            async def call() -> None:
                await go_on.wait()
                await super(Far, self).destroy(id)

            late.append(asyncio.ensure_future(call()))
            raise DriverFailed("no answer in time")

    class Down(MemoryStore):
        """Out of reach when the first session fails."""

        failures = 1

        async def replace(self, session: Any, **more: Any) -> Any:
            if session.phase is Phase.FAILED and self.failures:
                self.failures -= 1
                raise StoreFailed("the store is out of reach")
            return await super().replace(session, **more)

    store, machine = Down(), FakeMachine()
    driver = Far(machine)
    driver.fail("create", StartFailed("no luck"))
    async with managing(store, driver, key) as manager:
        sessions = manager.service.sessions
        repeat = Repeatable("key", "body")
        with pytest.raises(StoreFailed):
            await sessions.create(Wish(template=KEY), LOCAL, repeat)
        session = await sessions.create(Wish(template=KEY), LOCAL, repeat)
        assert session.phase is Phase.READY
        assert session.sandbox is not None
        go_on.set()
        await asyncio.gather(*late)
        assert session.sandbox.id in machine.boxes


async def test_a_sandbox_is_not_destroyed_that_a_lost_write_gave_to_its_session(key: RSAPrivateKey) -> None:
    """The store is not heard again when it is told that the sandbox runs, and takes it in all the same, later.

    Until then the manager starts again, with the same id, and stands still; another goes on meanwhile.
    """
    lost: list[Any] = []
    go_on = asyncio.Event()

    class Unheard(MemoryStore):
        async def replace(self, session: Any, **more: Any) -> Any:
            if session.phase is Phase.RUNNING and not lost:
                lost.append((session, more))
                raise StoreFailed("the link is gone")
            return await super().replace(session, **more)

    class Slow(FakeDriver):
        starts = 0

        async def create(self, spec: Any) -> Sandbox:
            self.starts += 1
            if self.starts > 1:
                await go_on.wait()
            return await super().create(spec)

    async def standing_still(*_: Any) -> None: ...

    store, machine = Unheard(), FakeMachine()
    driver = Slow(machine)
    lease: dict[str, Any] = {"replicated": True, "lease_s": 0.5}
    async with managing(store, driver, key, **lease) as manager:
        with pytest.raises(StoreFailed):
            await manager.service.sessions.create(Wish(template=KEY), LOCAL, Repeatable("key", "body"))
        session, more = lost[0]
        manager._reconciler._renew = standing_still  # type: ignore[method-assign]
        again = manager._reconciler.look(session.id).task
        await eventually(lambda: driver.starts == 2)
        await MemoryStore.replace(store, session, **more)

        async def ready() -> bool:
            return (await store.get(session.id)).phase is Phase.READY

        async with managing(store, FakeDriver(machine), key, **lease):
            await eventually(ready)
            go_on.set()
            await asyncio.wait({again}, timeout=10)
            assert again.done()
            assert await ready()
            assert session.sandbox.id in machine.boxes


async def test_a_session_that_its_client_was_told_has_failed_does_not_begin_again(key: RSAPrivateKey) -> None:
    """Its warm sandbox was no good, and could not be destroyed at first: a cold start was out of the question."""
    store, driver = MemoryStore(), FakeDriver(FakeMachine())
    async with managing(store, driver, key, pool=1) as manager:
        await eventually(lambda: len(store._live.warm) == 1 and _warm(store))
        driver.fail("bind", DriverFailed("no luck"))
        driver.fail("destroy", DriverFailed("umount: busy"))
        sessions, repeat = manager.service.sessions, Repeatable("key", "body")
        told = await sessions.create(Wish(template=KEY), LOCAL, repeat)
        assert told.phase is Phase.FAILED
        again = await sessions.create(Wish(template=KEY), LOCAL, repeat)
        assert (again.id, again.phase) == (told.id, Phase.FAILED)
        assert again.sandbox is None  # destroyed meanwhile


async def test_a_failed_session_that_its_client_is_told_of_is_not_abandoned(key: RSAPrivateKey) -> None:
    class TakenOver(MemoryStore):
        """As if another manager had written the failure, taking the maker for dead and the client for gone."""

        async def replace(self, session: Any, **more: Any) -> Any:
            if session.phase is Phase.FAILED and session.history[-2].phase is Phase.PENDING and not told:
                told.append(session.id)
                session = replace(session, answer_by=session.expires_at)
            return await super().replace(session, **more)

    told: list[SessionId] = []
    store, driver = TakenOver(), FakeDriver(FakeMachine())
    driver.fail("create", StartFailed("no luck"))
    async with managing(store, driver, key) as manager:
        session = await manager.service.sessions.create(Wish(template=KEY), LOCAL)
        assert session.phase is Phase.FAILED
        assert told == [session.id]
        assert (await store.get(session.id)).answer_by is None


async def test_a_hold_that_a_store_does_not_answer_for_does_not_hold_up_the_others(
    key: RSAPrivateKey,
) -> None:
    hanging: set[SessionId] = set()
    renewed: set[SessionId] = set()

    class Hanging(MemoryStore):
        async def get(self, id: SessionId) -> Any:
            if id in hanging:
                await asyncio.Event().wait()
            return await super().get(id)

        async def replace(self, session: Any, **more: Any) -> Any:
            if hanging and session.phase is Phase.PENDING:
                renewed.add(session.id)
            return await super().replace(session, **more)

    class Slow(FakeDriver):
        async def create(self, spec: Any) -> Sandbox:
            await asyncio.Event().wait()
            raise AssertionError

    store = Hanging()
    async with managing(store, Slow(FakeMachine()), key, lease_s=0.3) as manager:
        making = [
            asyncio.ensure_future(manager.service.sessions.create(Wish(template=KEY), LOCAL))
            for _ in range(3)
        ]
        known: list[SessionId] = []

        async def all_there() -> bool:
            known[:] = [session.id for session in (await store.list(SessionQuery())).sessions]
            return len(known) == 3

        await eventually(all_there)
        hanging.add(known[0])
        for _ in range(2):  # more than once: also in the rounds after the one that hangs
            renewed.clear()
            await eventually(lambda: renewed >= set(known[1:]))
        for one in making:
            one.cancel()


async def test_an_orphan_that_cannot_be_destroyed_does_not_keep_the_others() -> None:
    class Keeping:
        keeping = True

    class Stubborn:
        def __init__(self) -> None:
            self.ids = [SandboxId(f"sb-{number}") for number in range(6)]

        async def inventory(self) -> list[tuple[SandboxId, dict[str, str]]]:
            return [(id, {}) for id in self.ids]

        async def destroy(self, id: SandboxId) -> None:
            if id == "sb-3":
                raise DriverFailed("it is busy")
            self.ids.remove(id)

    machine = Stubborn()
    orphans = Orphans(ManagerSettings(), MemoryStore(), machine, Keeping())  # type: ignore[arg-type]
    for _ in range(2):
        await orphans.sweep()
    assert machine.ids == ["sb-3"]
