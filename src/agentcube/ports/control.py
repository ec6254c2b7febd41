"""The control port: what the Router asks of the Workload Manager off the hot path.

In one process it is the manager's service itself; in a cluster an HTTP client of it.
"""

from __future__ import annotations

from typing import Protocol

from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.ports.tokens import Subject


class ControlPlane(Protocol):
    """Creates and wakes sessions for the Router, and looks again at one that does not answer."""

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        """A new Ready session of `template`, owned by `subject`; waits for it, with a deadline.

        `key`: an idempotency key of the subject's, if not empty; then it may be the session that an earlier
        call with it made. Raises Conflict when that has ended.

        A session that ended up Failed is returned too (the client must get its id); raises
        TemplateNotFound, CapacityExhausted, StartTimedOut, Unavailable when there is no session.
        """
        ...

    async def wake(self, id: SessionId) -> Session:
        """The session, Ready, resumed if it slept or was falling asleep; concurrent calls share one resume.

        Raises SessionNotFound, WakeFailed (it is kept asleep), and what a Failed session stands for.
        """
        ...

    async def suspect(self, id: SessionId) -> Session:
        """Look at the session's sandbox now (it refused a connection); returns what the session is then."""
        ...
