"""Mistakes that somebody could make, put into the product on purpose: the simulation has to find each.

Each replaces one function of the product for as long as the context lasts and says what breaks by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from unittest import mock

from agentcube.manager import orphans
from agentcube.manager.acts import Acts
from agentcube.manager.orphans import Orphans
from agentcube.manager.pools import Pools
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.records import Records
from agentcube.model import session as sessions
from agentcube.model.ids import sandbox_id_for
from agentcube.model.plan import Seen
from agentcube.ports.driver import Suspendable
from agentcube.router.wakes import Wakes
from agentcube.stores import tables
from agentcube.stores.tables import DropWarm, Tables
from tests.simulation.errors import Rule


@contextmanager
def replace_without_compare() -> Iterator[None]:
    """The store takes any revision: of two writers who read the same record, one undoes the other's change."""
    with mock.patch.object(tables, "_same_revision", return_value=None):
        yield


@contextmanager
def claim_without_taking() -> Iterator[None]:
    """A claim leaves its entry in the pool: the next session gets the same sandbox."""
    original = Tables.claim_warm

    def claim(self: Tables, *args: Any) -> Any:
        outcome = original(self, *args)
        return replace(outcome, changes=tuple(c for c in outcome.changes if not isinstance(c, DropWarm)))

    with mock.patch.object(Tables, "claim_warm", claim):
        yield


@contextmanager
def unknown_taken_for_gone() -> Iterator[None]:
    """A driver that cannot tell is taken to say that the sandbox is gone: live sessions fail."""
    original = Reconciler._look

    async def look(self: Reconciler, session: Any) -> Seen:
        seen = await original(self, session)
        return Seen.GONE if seen is Seen.UNKNOWN else seen

    with mock.patch.object(Reconciler, "_look", look):
        yield


@contextmanager
def held_by_others_ignored() -> Iterator[None]:
    """A manager takes over what another one is acting on, as if that were dead."""
    with mock.patch.object(Records, "is_others", return_value=False):
        yield


@contextmanager
def activity_taken_for_instant() -> Iterator[None]:
    """Nobody allows for the time that activity takes to reach the store: sessions end while they are used."""
    with mock.patch.object(sessions, "ACTIVITY_LAG", timedelta(0)):
        yield


@contextmanager
def traffic_does_not_rouse() -> Iterator[None]:
    """A Router leaves a session asleep that fell asleep under a request: the request waits for ever."""
    with mock.patch.object(Wakes, "rouse", return_value=None):
        yield


@contextmanager
def forgotten_before_destroyed() -> Iterator[None]:
    """A sandbox that could not be destroyed is taken for destroyed: its session is forgotten, and it stays."""
    original = Acts._discard

    async def discard(self: Acts, id: Any) -> bool:
        await original(self, id)
        return True

    with mock.patch.object(Acts, "_discard", discard):
        yield


@contextmanager
def starts_share_an_id() -> Iterator[None]:
    """Every start for a session makes the same sandbox: a manager that was taken for dead destroys its successor's."""
    with mock.patch.object(orphans, "sandbox_id_for", lambda session, attempt=1: sandbox_id_for(session)):
        yield


@contextmanager
def drained_though_claimed() -> Iterator[None]:
    """A pool destroys what it has too many of, also when a session has just claimed it."""

    async def drain(self: Pools, id: Any, group: Any) -> None:
        await self._store.remove_warm(id)
        self.doom(id)

    with mock.patch.object(Pools, "_drain", drain):
        yield


@contextmanager
def act_before_intent() -> Iterator[None]:
    """A session whose time is up has its sandbox destroyed before that is on record: it may be used again by then."""
    original = Acts.begin_delete

    async def begin_delete(self: Acts, id: Any, reason: str) -> None:
        session = await self._records.store.get(id)
        if session.sandbox is not None:
            await self._discard(session.sandbox.id)
        await original(self, id, reason)

    with mock.patch.object(Acts, "begin_delete", begin_delete):
        yield


@contextmanager
def orphans_known_too_early() -> Iterator[None]:
    """What is on record is read before what there is, and looked at once: what was made meanwhile is nobody's."""

    async def strangers(store: Any, driver: Any) -> list[Any]:
        known = {entry.id for entry in await store.list_warm()}
        known |= orphans.sandboxes_of(await orphans.all_sessions(store))
        return [id for id, _ in await driver.inventory() if id not in known]

    async def sweep(self: Orphans) -> None:
        for id in await strangers(self._store, self._driver):
            await self._driver.destroy(id)

    with mock.patch.object(Orphans, "sweep", sweep):
        yield


@contextmanager
def late_calls_count() -> Iterator[None]:
    """Suspensions and wakes carry no fence: one that comes late freezes a session that is awake."""
    original = Acts._suspendable

    class Unfenced:
        def __init__(self, driver: Suspendable) -> None:
            self._driver = driver

        async def suspend(self, sandbox: Any, *, fence: int) -> Any:
            return await self._driver.suspend(sandbox, fence=0)

        async def resume(self, sandbox: Any, *, fence: int) -> Any:
            return await self._driver.resume(sandbox, fence=0)

    with mock.patch.object(Acts, "_suspendable", lambda self: Unfenced(original(self))):
        yield


@contextmanager
def results_by_anyone() -> Iterator[None]:
    """A manager that does not hold a session any more writes what came of its act all the same."""
    with mock.patch.object(Records, "finish", Records.change):
        yield


@dataclass(frozen=True)
class Break:
    """A mistake, the promise that it breaks, and the faults that bring it to light soonest; None: any."""

    make: Callable[[], AbstractContextManager[None]]
    breaks: Rule
    by: tuple[str, ...] | None = None


BREAKS = (
    Break(replace_without_compare, Rule.REVISION),
    Break(claim_without_taking, Rule.OWNED),
    Break(unknown_taken_for_gone, Rule.DIED),
    Break(held_by_others_ignored, Rule.HELD),
    Break(results_by_anyone, Rule.HELD, ("strike", "manager pause", "driver slow")),
    Break(activity_taken_for_instant, Rule.REASON, ()),
    Break(traffic_does_not_rouse, Rule.WORKS),
    Break(forgotten_before_destroyed, Rule.FORGOTTEN),
    Break(act_before_intent, Rule.DESTROYED),
    Break(starts_share_an_id, Rule.DESTROYED, ("strike", "manager crash", "driver slow")),
    Break(drained_though_claimed, Rule.DESTROYED, ("box dies", "store slow")),
    Break(orphans_known_too_early, Rule.DESTROYED, ("store slow",)),
    Break(late_calls_count, Rule.ASLEEP),
)
