"""A process that hangs while it stops is ended, and says where."""

import subprocess
import sys
import textwrap

from agentcube.runtime.last_resort import LastResort

HANGS = """
    import threading
    from agentcube.runtime import logs
    from agentcube.runtime.last_resort import LastResort

    logs.configure()
    last = LastResort(0.2)
    last.arm()
    last.arm()

    def somewhere():
        threading.Event().wait()

    threading.Thread(target=somewhere, name="stuck").start()  # the interpreter would wait for it for ever
"""


def test_a_process_that_hangs_is_ended_and_says_where() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HANGS)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "ended by force" in done.stderr
    assert "stuck" in done.stderr
    assert "in somewhere" in done.stderr


def test_one_that_ends_in_time_is_not_kept() -> None:
    code = "from agentcube.runtime.last_resort import LastResort; LastResort(3600).arm()"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_unarmed_it_does_nothing() -> None:
    LastResort(0)
