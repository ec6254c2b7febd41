"""A session's sleep and its phases, on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from agentcube.sdk._core.errors import UnexpectedAnswer
from agentcube.sdk._core.events import PhaseChanged
from agentcube.sdk._core.requests import DELETE_TIMEOUT_S, QueryValue, Request, segment
from agentcube.sdk._core.results import time_of
from agentcube.sdk._core.tracks import SILENCE_S, Track, whole_of

LAST = "Deleted"


def suspend_session(base: str, session_id: str) -> Request:
    """Putting a session to sleep. Repeatable: one that sleeps is left so."""
    return _call(base, "suspend", session_id)


def resume_session(base: str, session_id: str) -> Request:
    """Waking a session. Repeatable: one that is awake is left so."""
    return _call(base, "resume", session_id)


def _call(base: str, call: str, session_id: str) -> Request:
    return Request(
        method="POST",
        url=f"{base}/v1/sessions/{segment(session_id, 'session id')}/{call}",
        what=f"{call} session {session_id}",
        timeout_s=DELETE_TIMEOUT_S,
        repeatable=True,
    )


class PhaseTrack(Track[PhaseChanged]):
    """Phase changes behind change `after`; None: from the present phase on. None is missed where the record has it."""

    def __init__(self, base: str, session_id: str, *, after: int | None) -> None:
        super().__init__(f"watch session {session_id}")
        self._url = f"{base}/v1/sessions/{segment(session_id, 'session id')}/events"
        self._after = after
        self._missed = False

    @property
    def identified(self) -> bool:
        return self.progress > 0

    def request(self, *, silence_s: float = SILENCE_S) -> Request:
        params: dict[str, QueryValue] = {} if self._after is None else {"after": self._after}
        headers = {"accept": "application/x-ndjson", "accept-encoding": "identity"}
        return Request(
            method="GET",
            url=self._url,
            what=self.what,
            params=params,
            headers=headers,
            timeout_s=silence_s,
            repeatable=True,
        )

    def _events(self, name: str, members: dict[str, Any]) -> Iterator[PhaseChanged]:
        if name == "gap":
            self._missed = True
        elif name == "phase":
            yield self._changed(members)

    def _changed(self, members: dict[str, Any]) -> PhaseChanged:
        phase, seq = members.get("phase"), whole_of(members, "seq", self.what)
        if not isinstance(phase, str):
            raise UnexpectedAnswer(f"{self.what}: an event names no phase")
        missed, self._missed = self._missed, False
        self._after = seq
        self.progress += 1
        self.ended = phase == LAST
        return PhaseChanged(
            phase=phase,
            seq=seq,
            reason=str(members.get("reason", "")),
            message=str(members.get("message", "")),
            at=time_of(members.get("at")),
            missed=missed,
        )
