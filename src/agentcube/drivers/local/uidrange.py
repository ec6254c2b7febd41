"""Ranges of user ids: every sandbox of a root server has 65,536 of its own.

It decides and remembers, and touches nothing: who maps a range, and where it is recorded, is the
launcher's business.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

from agentcube.errors import CapacityExhausted, Conflict

RANGE_SIZE = 65_536
"""Ids in one sandbox: what images expect (user `nobody` is 65534)."""

FIRST = 10_000_000
"""Where ranges start: above the people, services and subordinate ids that distributions hand out."""

LAST = 0x7FFF_FFFF
"""Ids above 2^31-1 are taken for negative numbers by some tools."""

Span = tuple[int, int]  # first id, count


class UidRanges:
    """Hands out ranges that no mapping, subordinate id file or other sandbox on record uses; from any thread.

    Args:
        taken: spans that are never handed out.
        allowed: spans that exist in our own user namespace.
    """

    def __init__(self, *, taken: Iterable[Span] = (), allowed: Iterable[Span] = ((0, LAST + 1),)) -> None:
        self._taken = tuple(taken)
        self._allowed = tuple(allowed)
        self._used: set[int] = set()
        self._free: list[int] = []
        self._fresh = self._candidates()
        self._lock = threading.Lock()

    @classmethod
    def detect(cls, root: Path = Path("/")) -> UidRanges:
        """The ranges this machine has, read from `root`'s /proc/self and /etc."""
        proc, etc = root / "proc/self", root / "etc"
        uids, gids = _own_map(proc / "uid_map"), _own_map(proc / "gid_map")
        taken = [*_subordinate(etc / "subuid"), *_subordinate(etc / "subgid")]
        return cls(taken=taken, allowed=[_overlap(u, g) for u in uids for g in gids])

    def allocate(self) -> int:
        """The first id of a range of its own. `CapacityExhausted` when none is left."""
        with self._lock:
            while self._free:
                base = self._free.pop()
                if base not in self._used:
                    self._used.add(base)
                    return base
            for base in self._fresh:
                if base not in self._used:
                    self._used.add(base)
                    return base
        raise CapacityExhausted(
            f"no range of {RANGE_SIZE} user ids is left above {FIRST} for another sandbox: delete sessions, "
            "or free ranges in /etc/subuid and /etc/subgid",
            ranges_in_use=len(self._used),
        )

    def reserve(self, base: int) -> None:
        """Record that a sandbox on record (after a restart) has the range at `base`.

        Raises:
            Conflict: another sandbox has it.
        """
        with self._lock:
            if base in self._used:
                raise Conflict(f"the user id range at {base} belongs to another sandbox", uid_base=base)
            self._used.add(base)

    def release(self, base: int) -> None:
        """Give a range back. Idempotent."""
        with self._lock:
            if base in self._used:
                self._used.remove(base)
                self._free.insert(0, base)  # the longest unused comes first: ids are not reused at once

    def in_use(self) -> frozenset[int]:
        """First ids of the ranges handed out or reserved."""
        return frozenset(self._used)

    def _candidates(self) -> Iterator[int]:
        for base in range(FIRST, LAST - RANGE_SIZE + 2, RANGE_SIZE):
            inside = any(start <= base and base + RANGE_SIZE <= start + n for start, n in self._allowed)
            if inside and not any(_meets((base, RANGE_SIZE), span) for span in self._taken):
                yield base


def _meets(a: Span, b: Span) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def _overlap(a: Span, b: Span) -> Span:
    start = max(a[0], b[0])
    return start, max(0, min(a[0] + a[1], b[0] + b[1]) - start)


def _own_map(path: Path) -> list[Span]:
    """Ids that exist in our user namespace: first and third column of a uid_map."""
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(int(row[0]), int(row[2])) for row in rows if len(row) == 3]


def _subordinate(path: Path) -> list[Span]:
    """Spans of an /etc/subuid; lines that are no `name:first:count` are not ours to judge."""
    try:
        rows = [line.split(":") for line in path.read_text(errors="replace").splitlines()]
    except OSError:
        return []
    return [(int(r[1]), int(r[2])) for r in rows if len(r) == 3 and r[1].isdigit() and r[2].strip().isdigit()]
