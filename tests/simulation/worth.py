"""What the simulation is worth: mistakes made on purpose are found, within what CI spends on it.

CI runs for a minute, some two million events; here a mistake may take one. `make simulate-breaks` runs it: together
they take half a minute, which is too long for every run of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from tests.simulation.breaks import BREAKS
from tests.simulation.world import Report, simulate

EVENTS_MAX = 1_000_000


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: broken.__name__)
def test_a_mistake_is_found(broken: Callable[[], AbstractContextManager[None]]) -> None:
    events, seed = 0, 0
    found: Report | None = None
    with broken():
        while found is None and events < EVENTS_MAX:
            seed += 1
            report = simulate(seed)
            events += report.events
            found = report if report.wrong else None
        assert found is not None, f"nothing wrong in {events} events of {seed} seeds"
        again = simulate(seed)
    assert (again.wrong, again.digest) == (found.wrong, found.digest)
