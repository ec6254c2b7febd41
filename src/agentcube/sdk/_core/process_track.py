"""Where a reader of a process's output stands. No I/O."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterator
from typing import Any

from agentcube.sdk._core.errors import UnexpectedAnswer
from agentcube.sdk._core.events import Exited, Gap, ProcessEvent, Started, Stderr, Stdout
from agentcube.sdk._core.processes import process_call, process_output
from agentcube.sdk._core.requests import Place, Request
from agentcube.sdk._core.results import number_of, text_of, time_of
from agentcube.sdk._core.tracks import SILENCE_S, Track, optional_whole_of, whole_of


class _Position:
    """How far one stream of a process was taken, and the text that its bytes are."""

    def __init__(self, name: str, taken: int) -> None:
        self.name = name
        self.taken = taken
        self._told = 0  # what is missing before this was said
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def gap(self, start: int, end: int) -> Iterator[Gap]:
        """The server no longer has some bytes, or skipped them."""
        start = max(start, self.taken, self._told)
        if end > start:
            self._told = end
            self._decoder.reset()
            yield Gap(stream=self.name, start=start, end=end)

    def add(self, offset: int, data: bytes) -> Iterator[Stdout | Stderr | Gap]:
        """What is new of a piece that begins at `offset`."""
        yield from self.gap(self.taken, offset)
        self.taken = max(self.taken, offset)
        data = data[self.taken - offset :]
        if data:
            at, self.taken = self.taken, self.taken + len(data)
            yield self._event(text=self._decoder.decode(data), data=data, offset=at)

    def end(self) -> Iterator[Stdout | Stderr]:
        """What is left of a character that was never completed."""
        text = self._decoder.decode(b"", final=True)
        if text:
            yield self._event(text=text, data=b"", offset=self.taken)

    def _event(self, *, text: str, data: bytes, offset: int) -> Stdout | Stderr:
        kind = Stdout if self.name == "stdout" else Stderr
        return kind(text=text, data=data, offset=offset)


class ProcessTrack(Track[ProcessEvent]):
    """The output of a process. Begins with `start`, or with the process of that id.

    `follow` False: only what there is.
    """

    def __init__(
        self,
        place: Place,
        start: Request | None = None,
        *,
        id: str | None = None,
        owned: bool = False,
        follow: bool = True,
    ) -> None:
        what = start.what if start is not None else f"read process {id} of session {place.session_id}"
        super().__init__(what, owned=owned)
        self.id = id
        self.pid: int | None = None
        self._place = place
        self._start = start
        self._follow = follow
        self._streams = {name: _Position(name, 0) for name in ("stdout", "stderr")}
        self._asked_at = -1
        self._announced = False

    @property
    def identified(self) -> bool:
        return self.id is not None

    def request(self, *, silence_s: float = SILENCE_S) -> Request:
        self._asked_at = self.progress
        if self.id is None:
            assert self._start is not None
            return self._start.waiting(silence_s)
        taken = [self._streams[name].taken for name in ("stdout", "stderr")]
        request = process_output(self._place, self.id, stdout=taken[0], stderr=taken[1], follow=self._follow)
        return request.waiting(silence_s)

    def answered(self) -> None:
        if not self._follow:
            self.ended = True  # then "more" only says that it runs on

    def cancellation(self) -> Request | None:
        if not self.owned or self.id is None or self.ended:
            return None
        return process_call(self._place, "DELETE", self.id, "kill", repeatable=True)

    def _events(self, name: str, members: dict[str, Any]) -> Iterator[ProcessEvent]:
        match name:
            case "start" if not self._announced:
                self._announced = True
                self.id = self.id or text_of(members, "id", self.what)
                self.pid = optional_whole_of(members, "pid")
                yield Started(id=self.id, pid=self.pid, started_at=time_of(members.get("started_at")))
            case "stdout" | "stderr":
                before = self._streams[name].taken
                yield from self._streams[name].add(
                    whole_of(members, "offset", self.what), _data(members, self.what)
                )
                if self._streams[name].taken != before:
                    self.advance()
            case "gap":
                start, end = whole_of(members, "from", self.what), whole_of(members, "to", self.what)
                yield from self._streams["stderr" if members.get("stream") == "stderr" else "stdout"].gap(
                    start, end
                )
            case "exit":
                yield from self._exit(members)

    def _exit(self, members: dict[str, Any]) -> Iterator[ProcessEvent]:
        missing = any(whole_of(members, n, self.what, p.taken) > p.taken for n, p in self._streams.items())
        if missing and self.progress != self._asked_at:
            self.more = True  # some output is missing, although nothing said so: ask for it
            return
        for position in self._streams.values():
            yield from position.gap(position.taken, whole_of(members, position.name, self.what, 0))
            yield from position.end()
        self.ended = True
        self.advance()
        yield Exited(
            exit_code=whole_of(members, "exit_code", self.what),
            signal=text_of(members, "signal") or None,
            timed_out=members.get("timed_out") is True,
            duration_s=number_of(members, "duration") or 0.0,
            error=text_of(members, "error"),
        )


def _data(members: dict[str, Any], what: str) -> bytes:
    encoded = members.get("data_base64")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except ValueError:  # binascii.Error, or not ASCII
            pass
    raise UnexpectedAnswer(f"{what}: an event of output has no data_base64")
