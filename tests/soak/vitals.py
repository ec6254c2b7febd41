"""What a process holds: descriptors, memory, processes below it. Read from the machine's /proc."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from agentcube.drivers.local.processes import tree_usage
from tests.e2e import harness


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """`descriptors` is None where we may not look: an ordinary user's PicoD is closed to that user.

    `kept_kb` is output of ended processes, which PicoD keeps in its memory for those who may still ask for it.
    """

    descriptors: int | None
    memory_kb: int
    processes: int
    kept_kb: int = 0

    @property
    def own_kb(self) -> int:
        """Memory without what it is to keep."""
        return self.memory_kb - self.kept_kb

    def size(self) -> tuple[int, int]:
        """For comparing two looks at one process that is at rest."""
        return self.processes, self.descriptors or 0

    def keeping(self, kb: int) -> Vitals:
        """The same, of which so much is output that is kept."""
        return replace(self, kept_kb=kb)


def picod_of(server: harness.Server, sandbox: str) -> int:
    """The process that is process 1 of a sandbox."""
    record = json.loads((server.data_dir / "sandboxes" / sandbox / "sandbox.json").read_text())
    return int(record["pid"])


def vitals(pid: int) -> Vitals:
    """Of one process, now; and how many processes there are with it and below it."""
    proc = Path("/proc") / str(pid)
    try:
        descriptors = len(list((proc / "fd").iterdir()))
    except PermissionError:
        descriptors = None
    status = (proc / "status").read_text()
    return Vitals(
        descriptors=descriptors,
        memory_kb=int(status.partition("RssAnon:")[2].split()[0]),
        processes=tree_usage(pid).pids,
    )
