"""The end that is certain: a process that was told to stop and hangs is ended by force, and says where it hung."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading

import structlog

log = structlog.get_logger(__name__)

FORCED = 1
"""The exit code of a stop by force."""


class LastResort:
    """Ends this process `seconds` after `arm`, unless it has ended by itself.

    It needs nothing that could hang: no event loop, no lock of ours. What lives on disk was stored
    before it was done, so the next start finishes what this one could not.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def arm(self) -> None:
        """Begin to count. Idempotent."""
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self._end)
            self._timer.daemon = True  # whoever ends in time is not kept
            self._timer.start()

    def _end(self) -> None:
        threads = sorted(thread.name for thread in threading.enumerate() if not thread.daemon)
        log.error("did not stop in time, ended by force", after_s=self._seconds, threads=threads)
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        os._exit(FORCED)
