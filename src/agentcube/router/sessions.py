"""What the Router keeps about a session beside the record itself, and who may reach it."""

from __future__ import annotations

from agentcube.errors import NotFound, SessionNotFound
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Endpoint, Sandbox
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.ports.store import SessionStore
from agentcube.ports.tokens import Subject
from agentcube.router.pool import Pool, Pools
from agentcube.router.targets import longest_prefix
from agentcube.wire.names import SESSION_HEADER

_ID_CHARACTERS_MAX = 128  # ours have 32


_EVERYTHING = (b"/",)  # what most templates have: one port for every path


class Port:
    """A place in a sandbox that answers HTTP. Two Ports of one Endpoint share its pool."""

    __slots__ = ("host_line", "pool")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        endpoint = pool.endpoint
        # Development servers that check Host know themselves by this name, not by ours.
        name = endpoint.host if endpoint.scheme == "tcp" else "localhost"
        suffix = f":{endpoint.port}" if endpoint.port else ""
        self.host_line = f"Host: {f'[{name}]' if ':' in name else name}{suffix}\r\n".encode("ascii")


class Entry:
    """One session as the Router sees it: the record, and what was derived from it."""

    __slots__ = (
        "_picod",
        "_ports",
        "_prefixes",
        "id",
        "in_flight",
        "line",
        "ready",
        "sandbox",
        "session",
    )

    def __init__(self, session: Session, pools: Pools) -> None:
        self.id = session.id
        self.line = f"{SESSION_HEADER}: {session.id}\r\n".encode("ascii")  # told to both sides
        self.in_flight = 0
        self.sandbox: Sandbox | None = None
        self._picod: Port | None = None
        self._prefixes: tuple[bytes, ...] = ()
        self._ports: tuple[Port, ...] = ()
        self.renew(session, pools)

    def renew(self, session: Session, pools: Pools) -> None:
        """Take a newer record of the same session."""
        self.session = session
        sandbox = session.sandbox
        # Whether a request can be sent to the sandbox now.
        self.ready = session.phase is Phase.READY and sandbox is not None
        if sandbox is self.sandbox:
            return
        self.sandbox = sandbox
        self._picod, self._prefixes, self._ports = None, (), ()
        if sandbox is None:
            return
        self._picod = Port(pools.of(sandbox.picod))
        # Python's sort is stable: of two equal prefixes the one declared first serves.
        routes = sorted(session.routes, key=lambda route: -len(route.path_prefix))
        known = [(r, e) for r in routes if (e := sandbox.ports.get(r.port)) is not None]
        self._prefixes = tuple(_absolute(route.path_prefix) for route, _ in known)
        self._ports = tuple(Port(pools.of(endpoint)) for _, endpoint in known)

    def picod(self) -> Port:
        """The sandbox's PicoD. The session must be ready."""
        assert self._picod is not None
        return self._picod

    def port(self, path: bytes) -> Port:
        """The port that serves `path`. The session must be ready. NotFound when none does."""
        if self._prefixes == _EVERYTHING:
            return self._ports[0]
        if self.session.routes:
            return self._ports[longest_prefix(self._prefixes, path)]
        return self.picod()

    def check(self, subject: Subject, key: TemplateKey | None) -> None:
        """Raise SessionNotFound unless `subject` may reach this session, under `key` if given.

        Foreign, misnamed and unknown look the same from outside.
        """
        session = self.session
        if (session.owner != subject.name and not subject.admin) or (
            key is not None and session.template != key
        ):
            raise unknown_session()
        if session.phase is Phase.DELETING or session.phase is Phase.DELETED:
            raise unknown_session()


def unknown_session() -> NotFound:
    """The one error for every session that the caller cannot have."""
    return SessionNotFound("there is no such session; it may have ended")


def _absolute(prefix: str) -> bytes:
    return ("/" + prefix.lstrip("/")).encode("utf-8")


class Sessions:
    """Entries by session id, following the store's own table."""

    __slots__ = ("_entries", "_pools", "_store")

    def __init__(self, store: SessionStore, pools: Pools) -> None:
        self._store = store
        self._pools = pools
        self._entries: dict[SessionId, Entry] = {}

    def find(self, id: SessionId) -> Entry | None:
        """The entry, when this process knows the session. No I/O; None is not 'absent'."""
        session = self._store.peek(id)
        if session is None:
            return None
        entry = self._entries.get(id)
        if entry is None:
            return self.keep(session)
        if entry.session is not session:
            entry.renew(session, self._pools)
        return entry

    async def get(self, id: SessionId) -> Entry:
        """The entry, asking the store if need be. Raises SessionNotFound or StoreFailed."""
        if len(id) > _ID_CHARACTERS_MAX or not id.isascii():
            raise unknown_session()
        entry = self.find(id)
        if entry is not None:
            return entry
        try:
            return self.keep(await self._store.get(id))
        except SessionNotFound:
            raise unknown_session() from None

    def keep(self, session: Session) -> Entry:
        """The entry for a record that came from elsewhere (the control plane, a read)."""
        entry = self._entries.get(session.id)
        if entry is None:
            entry = self._entries[session.id] = Entry(session, self._pools)
        elif session.revision >= entry.session.revision:
            entry.renew(session, self._pools)
        return entry

    def sweep(self) -> None:
        """Forget entries of sessions that are gone; their connections end with the idle ones."""
        gone = [
            id for id, entry in self._entries.items() if not entry.in_flight and self._store.peek(id) is None
        ]
        for id in gone:
            del self._entries[id]


def manager_port(endpoint: Endpoint, pools: Pools) -> Port:
    """The Workload Manager's own."""
    return Port(pools.of(endpoint))
