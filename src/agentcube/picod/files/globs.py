"""Patterns for paths, as shells have them: `*`, `?`, `[a-z]`, and `**` for any number of directories.

Names that begin with a dot are matched only by a part of the pattern that does, too.
"""

from __future__ import annotations

import fnmatch
import re
from typing import Union

from agentcube.picod.paths import DEPTH_MAX, PATH_BYTES_MAX
from agentcube.picod.problems import Problem

_Part = Union[None, "re.Pattern[str]"]  # None is `**`


class Glob:
    """A pattern. A path is matched a name at a time, so that whole directories can be passed over.

    A state says after how many parts of the pattern we may be; empty, nothing below can match.
    """

    def __init__(self, pattern: str) -> None:
        parts = [part for part in pattern.split("/") if part not in ("", ".")]
        if not parts or len(parts) > DEPTH_MAX or len(pattern) > PATH_BYTES_MAX or "\x00" in pattern:
            raise Problem("invalid", 'glob must be a pattern such as "**/*.py"')
        if ".." in parts:
            raise Problem("invalid", "glob must not lead out of the directory")
        self._parts = [_compiled(part) for part in parts]
        self._dotted = [part.startswith(".") for part in parts]
        self.start = self._closure({0})

    def step(self, state: frozenset[int], name: bytes) -> frozenset[int]:
        """Where we are after another name."""
        text = name.decode("utf-8", "surrogateescape")
        hidden = text.startswith(".")
        after = set()
        for at in state:
            if at == len(self._parts):
                continue
            part = self._parts[at]
            if part is None:
                if not hidden:
                    after.add(at)
            elif (self._dotted[at] or not hidden) and part.match(text):
                after.add(at + 1)
        return self._closure(after)

    def matches(self, state: frozenset[int]) -> bool:
        """Whether the names so far are a match."""
        return len(self._parts) in state

    def may_go_on(self, state: frozenset[int]) -> bool:
        """Whether more names could make a match."""
        return any(at < len(self._parts) for at in state)

    def _closure(self, state: set[int]) -> frozenset[int]:
        """`**` may stand for no directory at all."""
        for at in range(len(self._parts)):
            if at in state and self._parts[at] is None:
                state.add(at + 1)
        return frozenset(state)


def _compiled(part: str) -> _Part:
    if part == "**":
        return None
    try:
        return re.compile(fnmatch.translate(part), re.DOTALL)
    except re.error:  # such as [z-a]
        raise Problem("invalid", f"{part[:64]!r} is no pattern") from None
