"""What the simulation is worth: mistakes made on purpose are found, each by the promise that it breaks.

Found otherwise (by another promise, by an exception in the log) does not count. A mistake may take a million events;
`make simulate-breaks` runs it, which is too long for every run of the tests.
"""

from __future__ import annotations

import pytest

from tests.simulation.breaks import BREAKS, Break
from tests.simulation.world import Plan, Report, simulate

EVENTS_MAX = 1_000_000


@pytest.mark.parametrize("mistake", BREAKS, ids=lambda mistake: mistake.make.__name__)
def test_a_mistake_is_found(mistake: Break) -> None:
    events, seed = 0, 0
    found: Report | None = None
    plan = Plan(faults=mistake.by, heeds_logs=False)
    with mistake.make():
        while found is None and events < EVENTS_MAX:
            seed += 1
            report = simulate(seed, plan)
            events += report.events
            found = report if report.broken is mistake.breaks else None
        assert found is not None, f"{mistake.breaks!r} held in {events} events of {seed} seeds"
        again = simulate(seed, plan)
    assert (again.wrong, again.digest) == (found.wrong, found.digest)
