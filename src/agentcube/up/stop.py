"""`agentcube down`: stop the server of a data directory."""

from __future__ import annotations

import os
import select
import signal
import sys
from pathlib import Path

from agentcube.up.paths import default_data_dir, running

STOP_WITHIN_S = 60.0
"""More than the server's own drain and sandbox shutdown deadlines together."""


def down(data_dir: Path | None) -> int:
    """Ask the server to stop and wait until it has. Returns the exit code: 0 also when none was running."""
    path = (data_dir or default_data_dir()).expanduser().absolute()
    server = running(path)
    if server is None:
        print(f"no agentcube is running on {path}")  # noqa: T201
        return 0
    try:
        pidfd = os.pidfd_open(server.pid)
    except ProcessLookupError:
        return 0
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        gone, _, _ = select.select([pidfd], [], [], STOP_WITHIN_S)
    except ProcessLookupError:
        return 0
    except PermissionError:
        print(f"error: pid {server.pid} belongs to another user; run this as that user", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        os.close(pidfd)
    if not gone:
        print(f"error: pid {server.pid} did not stop within {STOP_WITHIN_S:.0f} s", file=sys.stderr)  # noqa: T201
        return 1
    print(f"stopped {server.url}")  # noqa: T201
    return 0
