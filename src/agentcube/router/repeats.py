"""Tells whether a client says again what it said before, which is most of what clients do. Pure.

Heads of one connection mostly differ in the values of a few lines: those alone are looked at.
"""

from __future__ import annotations

from itertools import compress
from operator import ne
from typing import TYPE_CHECKING, NamedTuple

from agentcube.router.lines import KEEP, TEXT

if TYPE_CHECKING:
    from agentcube.router.heads import Request

BLOCK_BYTES_MAX = 2048
"""Longest head of which a connection keeps the last: 10,000 idle clients hold 20 MB with it."""


def joined(lines: list[bytes], kept_at: list[int]) -> bytes:
    """The raw lines with these numbers, each with its CRLF."""
    return b"\r\n".join([*[lines[at] for at in kept_at], b""])


def repeats(previous: Request, block: bytes) -> bool:
    """Whether `block` says what the one before it said, but for values that only pass on; `previous` has these then."""
    if len(block) > BLOCK_BYTES_MAX or not previous.lines:
        return False
    changing = previous.changing
    if changing is not None and changing.take(previous, block):
        return True
    before, kinds = previous.lines, previous.kinds
    lines = block[:-4].split(b"\r\n")
    if len(lines) != len(before):
        return False
    changed = list(compress(range(len(lines)), map(ne, lines, before)))
    for at in changed:
        line, old = lines[at], before[at]
        if kinds[at] != KEEP or not line.startswith(old[: old.find(b":") + 1]) or line.translate(None, TEXT):
            return False
    previous.block, previous.lines = block, lines
    previous.kept = joined(lines, previous.kept_at)
    previous.changing = _changing(previous, changed) if changed else None
    return True


class Changing(NamedTuple):
    """Lines in a row that a client changes from request to request, all of which only pass on."""

    begins: int  # where they do in `block`
    follows: int  # how much of it comes behind them
    kept_begins: int  # the same in `kept`
    kept_follows: int
    names: list[bytes]  # with their colons
    breaks: bytes  # all that is not text in them

    def take(self, previous: Request, block: bytes) -> bool:
        """Whether `block` differs in these lines' values alone; `previous` has them then."""
        begins, follows, kept_begins, kept_follows, names, breaks = self
        before = previous.block
        if not before.startswith(block[:begins]) or not before.endswith(block[-follows:]):
            return False
        new = block[begins:-follows]
        lines = new.split(b"\r\n")
        if (
            len(lines) != len(names)
            or not all(map(bytes.startswith, lines, names))
            or new.translate(None, TEXT) != breaks
        ):
            return False
        kept = previous.kept
        previous.block = block
        previous.kept = b"%b%b%b" % (kept[:kept_begins], new, kept[-kept_follows:])
        return True


def _changing(request: Request, changed: list[int]) -> Changing | None:
    """Where the lines with these numbers are, and what lies between; None if not all of it only passes on."""
    first, last = changed[0], changed[-1]
    lines, kept_at, kinds = request.lines, request.kept_at, request.kinds
    between = range(first, last + 1)
    # Lines that frame the body pass on, too, and mean something; lines that Connection names do not pass on.
    if not set(between) <= set(kept_at) or any(kinds[at] != KEEP for at in between):
        return None
    region = lines[first : last + 1]
    size = sum(map(len, region)) + 2 * (len(region) - 1)
    begins = sum(len(line) + 2 for line in lines[:first])
    kept_begins = sum(len(lines[at]) + 2 for at in kept_at if at < first)
    return Changing(
        begins,
        len(request.block) - begins - size,
        kept_begins,
        len(request.kept) - kept_begins - size,
        [line[: line.find(b":") + 1] for line in region],
        b"\r\n" * (len(region) - 1),
    )
