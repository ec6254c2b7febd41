"""Sessions, their deadlines and their activity on the server; a claim, too, as it makes a session."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from agentcube.errors import AgentCubeError, AlreadyExists, SessionNotFound, StaleRevision, StoreFailed
from agentcube.model.ids import SessionId
from agentcube.model.session import Session
from agentcube.ports.store import UNBOUNDED, KeyTaken, Page, Quota, Reservation, SessionQuery
from agentcube.stores import codec
from agentcube.stores.index import cursor_after, read_cursor
from agentcube.stores.listing import check_limit, matches
from agentcube.stores.redis import layout, scripts
from agentcube.stores.redis.client import Client
from agentcube.stores.redis.known import Known
from agentcube.stores.redis.layout import Claiming, Keys, microseconds, score
from agentcube.stores.redis.link import Reply
from agentcube.stores.redis.replicated import ReplicatedWrites
from agentcube.stores.tables import used_up

_log = logging.getLogger(__name__)

_PAGE = 256  # records read at once: some 300 KB, a few milliseconds of either side
_TOUCH = 1000  # sessions per script; Lua's unpack takes about 8000 words
_ID_MAX = 200  # characters; ours have 32
_MILLISECOND = timedelta(milliseconds=1)


class RedisSessions:
    """Implements `ports.store.SessionStore`, and `claim_warm`. New sessions are made by `creations`."""

    def __init__(
        self, client: Client, keys: Keys, known: Known, creations: Client | ReplicatedWrites
    ) -> None:
        self._client = client
        self._keys = keys
        self._known = known
        self._creations = creations
        self._sessions = known.table.sessions

    async def get(self, id: SessionId) -> Session:
        if not _is_plain(id):
            raise _absent(id)
        table = self._known.table
        read = table.begin(id)
        try:
            record, active = await self._client.ask_all(
                ("GET", self._keys.sessions + id), ("ZSCORE", self._keys.active, id)
            )
        finally:
            true = table.end(id, read)
        if record is None:
            raise _absent(id)
        session = table.find(id, record)
        if session is None:
            session = layout.session_of(record, id=id)
            if true:
                table.put(session, record)
        return layout.with_activity(session, active)

    def peek(self, id: SessionId) -> Session | None:
        return self._sessions.get(id)

    async def list(self, query: SessionQuery) -> Page:
        check_limit(query)
        place: tuple[str | bytes, str | bytes] = ("", "")
        if query.cursor is not None:
            created_at, id = read_cursor(query.cursor)
            place = (score(created_at), id)
        index = "created" if query.owner is None else f"owner:{layout.owner_name(query.owner)}"
        found: list[Session] = []
        while True:
            rows = (await self._client.run(scripts.PAGE, index, *place, _PAGE))[1:]
            for at in range(0, len(rows), 4):
                name, time, record, active = rows[at : at + 4]
                place = (time, name)
                if record is None:
                    continue
                session = layout.session_of(record, active, id=SessionId(name.decode()))
                if not matches(session, query):
                    continue
                if len(found) == query.limit:
                    return Page(tuple(found), cursor_after(found[-1].created_at, found[-1].id))
                found.append(session)
            if len(rows) < 4 * _PAGE:
                return Page(tuple(found), None)

    async def insert(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session:
        stored = replace(session, revision=1)
        reply = await self._creations.run(
            scripts.INSERT,
            stored.id,
            layout.session_record(stored),
            *_places(stored),
            layout.sandbox_name(stored),
            layout.owner_name(stored.owner),
            *_bounds(quota),
            *_key(reservation, stored.created_at),
        )
        if reply[0] == b"ok":
            return stored
        raise _refusal(reply, session.id, quota)

    async def claim_warm(
        self, session: Session, *, quota: Quota = UNBOUNDED, reservation: Reservation | None = None
    ) -> Session | None:
        claiming = Claiming.of(session)
        reply = await self._creations.run(
            scripts.CLAIM,
            session.id,
            claiming.before,
            claiming.after,
            *_places(session),
            layout.owner_name(session.owner),
            layout.pool_name(session.template, session.generation),
            *_bounds(quota),
            *_key(reservation, session.created_at),
        )
        if reply[0] == b"ok":
            return claiming.claimed(reply[1])
        if reply[0] == b"none":
            return None
        raise _refusal(reply, session.id, quota)

    async def replace(self, session: Session, *, relaxed: bool = False) -> Session:
        changed = replace(session, revision=session.revision + 1)
        reply = await self._client.run(
            scripts.REPLACE,
            session.id,
            session.revision,
            layout.session_record(changed),
            score(changed.due_at),
            microseconds(changed.last_activity_at),
            layout.sandbox_name(changed),
        )
        self._known.table.drop(session.id)  # the push may come a moment after the answer
        if reply[0] == b"ok":
            return layout.with_activity(changed, reply[1])
        raise _refusal(reply, session.id, revision=session.revision)

    async def delete(self, id: SessionId, *, revision: int) -> None:
        if not _is_plain(id):
            return
        reply = await self._client.run(scripts.DELETE, id, revision)
        self._known.table.drop(id)
        if reply[0] not in (b"ok", b"absent"):
            raise _refusal(reply, id, revision=revision)

    async def lease_due(
        self, *, now: datetime, owner: str, lease: timedelta, limit: int
    ) -> Sequence[Session]:
        # A lease hides its session from everybody, its owner included, so nothing asks whose it is.
        arguments = (microseconds(now), microseconds(now + lease), limit)
        rows = (await self._client.run(scripts.LEASE, *arguments))[1:]
        due = []
        for at in range(0, len(rows), 3):
            id, record, active = rows[at : at + 3]
            try:
                due.append(layout.session_of(record, active, id=SessionId(id.decode())))
            except StoreFailed as exc:  # one that cannot be read must not stop the others; it comes again
                _log.error("due session left alone: %s", exc.detail)
        return due

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        words = [word for id, at in activity.items() if _is_plain(id) for word in (microseconds(at), id)]
        batches = [words[at : at + 2 * _TOUCH] for at in range(0, len(words), 2 * _TOUCH)]
        if batches:
            await self._client.ask_all(*(self._client.evaluation(scripts.TOUCH, *batch) for batch in batches))

    def changes(self) -> AsyncIterator[SessionId | None]:
        return self._known.feed.subscribe()


def _places(session: Session) -> tuple[int, str, int]:
    """Creation, deadline and activity as scores."""
    return (
        microseconds(session.created_at),
        score(session.due_at),
        microseconds(session.last_activity_at),
    )


def _bounds(quota: Quota) -> tuple[str, str]:
    return _bound(quota.total), _bound(quota.owner)


def _key(reservation: Reservation | None, now: datetime) -> tuple[str | int, ...]:
    """A reservation as a script takes it."""
    if reservation is None:
        return ("", "", "", "")
    return (
        layout.reservation_name(reservation.key),
        microseconds(reservation.expires_at),
        max(1, (reservation.expires_at - now) // _MILLISECOND),
        codec.reservation_to_text(reservation),
    )


def _bound(most: int | None) -> str:
    return "" if most is None else str(most)


def _is_plain(id: str) -> bool:
    """Whether a session may have this id; nobody else's text becomes a key."""
    return id.isascii() and id.isprintable() and len(id) <= _ID_MAX


def _absent(id: SessionId) -> SessionNotFound:
    return SessionNotFound(f"there is no session {id}", session=id)


def _refusal(
    reply: Reply, id: SessionId, quota: Quota = UNBOUNDED, *, revision: int = 0
) -> AgentCubeError | KeyTaken:
    match reply[0]:
        case b"taken":
            text = reply[1].decode("latin-1")
            return KeyTaken(codec.reservation_from_text(text, name="an idempotency key"))
        case b"damaged-key":
            return StoreFailed("an idempotency key is damaged: it does not read as a record")
        case b"exists":
            return AlreadyExists(f"session {id} exists", session=id)
        case b"full":
            return used_up("total" if reply[1] == b"total" else "owner", quota)
        case b"absent":
            return _absent(id)
        case b"stale":
            return StaleRevision(
                f"session {id} is at revision {int(reply[1])}, not {revision}; read it again",
                session=id,
                revision=int(reply[1]),
            )
        case _:
            return StoreFailed(f"session {id} is damaged: its record has no head")
