"""Runs pytest with the given arguments; a few tests that fail in company are run once more, alone, and named.

Machines that run these tests are shared, and some tests watch real processes, terminals and clocks of theirs.
A test that fails alone as well fails the run; so do more than UNSTABLE_MAX at once, and everything that is no
failed test (a collection that breaks, a crash). Whoever is named here is to be mended, not to be lived with.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

UNSTABLE_MAX = 3
TESTS_FAILED = 1  # pytest's exit code; others mean that something else went wrong

LAST_FAILED = Path(__file__).resolve().parent.parent / ".pytest_cache/v/cache/lastfailed"


def main(arguments: list[str]) -> int:
    """Pytest's exit code, that of the second look where there was one."""
    LAST_FAILED.unlink(missing_ok=True)  # what fails now, not what failed once
    code = subprocess.run([sys.executable, "-m", "pytest", *arguments], check=False).returncode
    if code != TESTS_FAILED or not LAST_FAILED.exists():
        return code
    failed = list(json.loads(LAST_FAILED.read_text()))
    if not 0 < len(failed) <= UNSTABLE_MAX:
        return code
    print(f"== {len(failed)} failed: once more, alone", flush=True)
    code = subprocess.run([sys.executable, "-m", "pytest", "-q", "-n", "0", *failed], check=False).returncode
    print(
        "== not every one passed alone" if code else "== UNSTABLE, passed alone: " + ", ".join(failed),
        flush=True,
    )
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
