"""docs/reference/lifecycle.md says what the transition table says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from agentcube.model.lifecycle import TRANSITIONS

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_is_what_the_table_makes_it() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "lifecycle_diagram.py", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_page_has_a_row_for_every_change() -> None:
    page = (ROOT / "docs" / "reference" / "lifecycle.md").read_text(encoding="utf-8")
    for (phase, trigger), to in TRANSITIONS.items():
        assert f"| {phase} | `{trigger}` | {to} |" in page
