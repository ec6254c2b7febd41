"""The sessions this process knows, as the server's pushes keep them true. No I/O, no waiting."""

from __future__ import annotations

from agentcube.model.ids import SessionId
from agentcube.model.session import Session


class Table:
    """Sessions by id, at most `size_max`: the one that was learnt first goes first.

    `sessions` is read by whoever wants to know without asking; change it only by these methods.
    """

    def __init__(self, size_max: int) -> None:
        self.sessions: dict[SessionId, Session] = {}
        self._digests: dict[SessionId, int] = {}
        self._reading: dict[SessionId, int] = {}
        self._reads = 0
        self._size_max = size_max

    def begin(self, id: SessionId) -> int:
        """A read of the session is about to be sent; give the number to `end`."""
        self._reads += 1
        self._reading[id] = self._reads
        return self._reads

    def end(self, id: SessionId, read: int) -> bool:
        """The answer is here, or will not be: whether it may be put into the table.

        Not if the session changed meanwhile: who waits for an answer runs later than the push that came
        right behind it. Of several reads at once, the last to begin will do.
        """
        if self._reading.get(id) != read:
            return False
        del self._reading[id]
        return True

    def put(self, session: Session, record: bytes) -> None:
        """The session is this now, read from `record`."""
        id = session.id
        if id not in self.sessions and len(self.sessions) >= self._size_max:
            self._take_out(next(iter(self.sessions)))
        self.sessions[id] = session
        self._digests[id] = hash(record)

    def find(self, id: SessionId, record: bytes) -> Session | None:
        """The session, when it was read from just this record: spares reading it again."""
        return self.sessions[id] if self._digests.get(id) == hash(record) else None

    def drop(self, id: SessionId) -> None:
        """The session changed, or is gone."""
        self._reading.pop(id, None)
        self._take_out(id)

    def clear(self) -> None:
        """Anything may have changed."""
        self.sessions.clear()
        self._digests.clear()
        self._reading.clear()

    def _take_out(self, id: SessionId) -> None:
        self.sessions.pop(id, None)
        self._digests.pop(id, None)
