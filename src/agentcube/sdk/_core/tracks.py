"""Where a reader of a stream of events stands: what to ask for, what an answer's lines mean, where to go on.

No I/O and no time. Whoever follows a track sends `request()`, gives what comes to `take`, and when the answer ends
before `ended` sends `request()` again: that one begins after the last event taken, so nothing is lost or repeated,
wherever the connection was cut. Positions that a request names are also the confirmation of all before them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

from agentcube.sdk._core.errors import StreamReplaced, UnexpectedAnswer
from agentcube.sdk._core.lines import Lines
from agentcube.sdk._core.requests import Request

E = TypeVar("E")

SILENCE_S = 40.0
"""A stream that says nothing for this long is lost: a server that is there says `ping` every 5 s, or 15."""


class Track(ABC, Generic[E]):
    """One stream. `progress` counts what was new; `ended`: the last event was taken; `more`: ask again at once.

    `owned`: what the stream is of shall not go on without a reader. `sent`: a request may have reached the server that
    began it, although no answer said so.
    """

    def __init__(self, what: str, *, owned: bool = False) -> None:
        self.what = what
        self.owned: bool = owned
        self.ended: bool = False
        self.more: bool = False
        self.sent: bool = False
        self.progress: int = 0
        self._lines = Lines(what)

    @property
    @abstractmethod
    def identified(self) -> bool:
        """Whether the server has said what the stream is of, so that another request can name it."""

    @abstractmethod
    def request(self, *, silence_s: float = SILENCE_S) -> Request:
        """What to ask for now."""

    def cancellation(self) -> Request | None:
        """What ends on the server what the stream is of; None where that is not known, or not to be ended."""
        return None

    def advance(self) -> None:
        """Something new was taken."""
        self.progress += 1

    def mark_sent(self) -> None:
        """The request is being sent."""
        self.sent = True

    def restart(self) -> None:
        """Another answer begins."""
        self._lines.restart()
        self.more = False

    def answered(self) -> None:
        """The answer came to its proper end."""

    def take(self, piece: bytes) -> Iterator[E]:
        """The new events of a piece of the answer. Raises StreamReplaced and UnexpectedAnswer."""
        for members in self._lines.feed(piece):
            match members.get("event"):
                case "ping":
                    pass
                case "more":
                    self.more = True
                case "replaced":
                    self.owned = False
                    raise StreamReplaced(
                        f"{self.what}: another reader took over, and reads what comes from here on"
                    )
                case str(name):
                    yield from self._events(name, members)

    @abstractmethod
    def _events(self, name: str, members: dict[str, Any]) -> Iterator[E]: ...


def whole_of(members: Mapping[str, Any], name: str, what: str, default: int | None = None) -> int:
    """The whole number of a member. Raises UnexpectedAnswer where there is none and no default."""
    value = members.get(name, default)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise UnexpectedAnswer(f"{what}: an event has no number {name}")


def optional_whole_of(members: Mapping[str, Any], name: str) -> int | None:
    """The whole number of a member; None where there is none."""
    value = members.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
