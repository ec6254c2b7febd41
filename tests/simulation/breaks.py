"""Mistakes that somebody could make, put into the product on purpose: the simulation has to find each.

Each replaces one function of the product for as long as the context lasts and says what breaks by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest import mock

from agentcube.manager.acts import Acts
from agentcube.manager.reconciler import Reconciler
from agentcube.manager.records import Records
from agentcube.model import session as sessions
from agentcube.model.plan import Seen
from agentcube.router.wakes import Wakes
from agentcube.stores import tables
from agentcube.stores.tables import DropWarm, Tables


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


BREAKS: tuple[Callable[[], AbstractContextManager[None]], ...] = (
    replace_without_compare,
    claim_without_taking,
    unknown_taken_for_gone,
    held_by_others_ignored,
    activity_taken_for_instant,
    traffic_does_not_rouse,
    forgotten_before_destroyed,
)
