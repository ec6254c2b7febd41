"""Whether sandboxes live: process 1 of each, by a descriptor, so that an answer is about no stranger."""

from __future__ import annotations

import os

from agentcube.drivers.local import processes
from agentcube.drivers.local.records import Record
from agentcube.drivers.local.steps import named
from agentcube.model.ids import SandboxId
from agentcube.model.plan import Seen


class Lives:
    """One descriptor for each sandbox that was looked at. For one thread."""

    def __init__(self) -> None:
        self._pidfds: dict[SandboxId, int] = {}

    def known(self, id: SandboxId) -> Seen | None:
        """Whether the sandbox lives; None when nobody has looked at it yet."""
        pidfd = self._pidfds.get(id)
        if pidfd is None:
            return None
        return Seen.GONE if processes.has_ended(pidfd) else Seen.ALIVE

    def look(self, record: Record) -> Seen:
        """Whether the sandbox lives; from then on we hold its descriptor.

        Raises:
            CapacityExhausted, DriverFailed: the machine did not let us look.
        """
        seen = self.known(record.id)
        if seen is not None:
            return seen
        with named(f"look at sandbox {record.id}"):
            pidfd = record.open_process()
        if pidfd is None:
            return Seen.GONE
        self._pidfds[record.id] = pidfd
        return Seen.GONE if processes.has_ended(pidfd) else Seen.ALIVE

    def take(self, id: SandboxId) -> int | None:
        """The descriptor, from then on the caller's to close; None when there is none."""
        return self._pidfds.pop(id, None)

    def close(self) -> None:
        """Let go of all."""
        while self._pidfds:
            os.close(self._pidfds.popitem()[1])
