"""The manager's use cases for ports of a session: expose, list, withdraw, and share by link."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from agentcube.errors import Conflict, Invalid, InvalidTransition, LimitExceeded, NotFound
from agentcube.manager.records import Records
from agentcube.manager.service import Sessions
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import LIVE
from agentcube.model.session import Session
from agentcube.ports.clock import Clock
from agentcube.ports.tokens import Signer, Subject

EXPOSED_MAX = 32
"""Ports of one session: more than the servers that anybody runs in one sandbox."""

LINK_TTL_MAX = timedelta(days=30)
"""Of a share link. Its session is over long before."""

_KEY_BYTES = 9  # no secret, the signature is; but no link of before a withdrawal may fit again


@dataclass(frozen=True, slots=True)
class ShareLink:
    """What lets its bearer reach one port of a session until `expires_at`."""

    token: str
    expires_at: datetime


class Exposures:
    """Ports that may be reached besides those that the template declares, and links to both."""

    def __init__(self, sessions: Sessions, records: Records, signer: Signer, clock: Clock) -> None:
        self._sessions = sessions
        self._records = records
        self._signer = signer
        self._clock = clock

    async def find(self, id: SessionId, subject: Subject, port: int | None = None) -> Session:
        """The session; with `port` one that is declared or exposed. Raises SessionNotFound, NotFound."""
        session = await self._sessions.get(id, subject)
        if port is not None and port not in ports_of(session):
            raise _not_exposed(port)
        return session

    async def expose(self, id: SessionId, port: int, subject: Subject) -> Session:
        """Let the port be reached. Idempotent: its links stay good.

        Raises SessionNotFound, InvalidTransition (it has ended), LimitExceeded, Conflict (its sandbox cannot).
        """
        await self._sessions.get(id, subject)
        return await self._records.change(id, lambda now: _exposed(now, port))

    async def withdraw(self, id: SessionId, port: int, subject: Subject) -> None:
        """Let the port be reached no longer, unless the template declares it; end its links in any case.

        Raises SessionNotFound, NotFound (neither declared nor exposed).
        """
        await self._sessions.get(id, subject)
        await self._records.change(id, lambda now: _withdrawn(now, port))

    async def share(
        self, id: SessionId, port: int, ttl: timedelta, subject: Subject
    ) -> tuple[Session, ShareLink]:
        """A link to the port, which is exposed if it is not; ends with the session at the latest.

        Raises Invalid, and as `expose`.
        """
        if ttl > LINK_TTL_MAX:
            raise Invalid(f"a share link lives {LINK_TTL_MAX.days} days at most")
        session = await self.expose(id, port, subject)
        expires_at = min(self._clock.now() + ttl, session.expires_at)
        token = self._signer.for_link(id, port, session.exposed[port], expires_at)
        return session, ShareLink(token, expires_at)


def ports_of(session: Session) -> dict[int, str]:
    """The ports that may be reached, with the names of those that the template names; in order."""
    names = dict.fromkeys(session.exposed, "") | {route.port: route.name for route in session.routes}
    return dict(sorted(names.items()))


def _exposed(session: Session, port: int) -> Session | None:
    if session.phase not in LIVE:
        raise InvalidTransition(
            f"a session that is {session.phase} exposes nothing",
            session=session.id,
            phase=session.phase.value,
        )
    if port in session.exposed:
        return None
    sandbox = session.sandbox
    if sandbox is not None and sandbox.others is None and port not in sandbox.ports:
        raise Conflict("only declared ports of this session's sandbox can be reached", session=session.id)
    if len(session.exposed) >= EXPOSED_MAX:
        raise LimitExceeded(f"a session exposes {EXPOSED_MAX} ports at most", limit=EXPOSED_MAX)
    return replace(session, exposed={**session.exposed, port: secrets.token_urlsafe(_KEY_BYTES)})


def _withdrawn(session: Session, port: int) -> Session | None:
    if port not in ports_of(session):
        raise _not_exposed(port)
    if port not in session.exposed:
        return None
    return replace(session, exposed={p: key for p, key in session.exposed.items() if p != port})


def _not_exposed(port: int) -> NotFound:
    return NotFound(f"port {port} of this session is neither declared nor exposed", reason="no_such_port")
