"""The simulation itself: it finds nothing where nothing is, and a run is the same run wherever it is run.

`.ci/run` runs it for a minute with fresh seeds (`make simulate`); these are for every change.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.breaks import replace_without_compare
from tests.simulation.world import simulate

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed", [3, 5])
def test_nothing_is_wrong(seed: int) -> None:
    report = simulate(seed)
    assert report.wrong is None
    assert report.events > 5_000
    assert report.done > 100


def test_a_store_that_does_not_compare_revisions_is_found() -> None:
    """The quickest of `worth.py`."""
    with replace_without_compare():
        assert any(simulate(seed).wrong for seed in range(1, 10))


def test_a_seed_replays_exactly_in_another_process() -> None:
    """Neither hash seeds, addresses, time nor what ran before leaks into a run. Seed 17 has every kind of fault."""
    here = simulate(17)
    told = []
    for hashes in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", "17"]
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"(\d+) events, .*\n.*digest ([0-9a-f]{16})", done.stdout)
        assert found, done.stdout
        told.append((int(found[1]), int(found[2], 16)))
    assert told == [(here.events, here.digest)] * 2
