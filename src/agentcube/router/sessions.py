"""What the Router keeps about a session beside the record itself, and who may reach it."""

from __future__ import annotations

from dataclasses import replace

from agentcube.errors import NotFound, SessionNotFound
from agentcube.model import sandbox as sandbox_model
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import ASLEEP, Phase
from agentcube.model.sandbox import Endpoint, Sandbox
from agentcube.model.session import Session
from agentcube.model.template import TemplateKey
from agentcube.ports.store import SessionTable
from agentcube.ports.tokens import Subject
from agentcube.router.pool import Pool, Pools
from agentcube.router.targets import longest_prefix
from agentcube.wire.names import SESSION_HEADER

_ID_CHARACTERS_MAX = 128  # ours have 32


_EVERYTHING = (b"/",)  # what most templates have: one port for every path


class Port:
    """A place in a sandbox that answers HTTP. Two Ports of one Endpoint share its pool.

    `passes_credentials`: it is to get what its callers prove themselves with.
    """

    __slots__ = ("host_line", "passes_credentials", "pool")

    def __init__(self, pool: Pool, *, passes_credentials: bool = False) -> None:
        self.pool = pool
        self.passes_credentials = passes_credentials
        endpoint = pool.endpoint
        # Development servers that check Host know themselves by this name, not by ours.
        name = endpoint.host if endpoint.scheme == "tcp" else "localhost"
        suffix = f":{endpoint.port}" if endpoint.port else ""
        self.host_line = f"Host: {f'[{name}]' if ':' in name else name}{suffix}\r\n".encode("ascii")


class Entry:
    """One session as the Router sees it: the record, and what was derived from it."""

    __slots__ = (
        "_others",
        "_picod",
        "_pools",
        "_ports",
        "_prefixes",
        "_routes",
        "busy",
        "id",
        "in_flight",
        "line",
        "ready",
        "sandbox",
        "session",
        "sleeps",
    )

    def __init__(self, session: Session, pools: Pools) -> None:
        self.id = session.id
        self.line = f"{SESSION_HEADER}: {session.id}\r\n".encode("ascii")  # told to both sides
        self.in_flight = 0
        self.busy = 0  # of those, the ones that keep it awake for as long as they last
        self.sandbox: Sandbox | None = None
        self._picod: Port | None = None
        self._prefixes: tuple[bytes, ...] = ()
        self._routes: tuple[sandbox_model.Port, ...] = ()  # those that `_ports` serve
        self._ports: tuple[Port, ...] = ()
        self._others: dict[int, Port] = {}  # exposed ones that were used
        self._pools = pools
        self.renew(session)

    def renew(self, session: Session) -> None:
        """Take a newer record of the same session."""
        self.session = session
        self._others = {n: port for n, port in self._others.items() if n in session.exposed}
        sandbox = session.sandbox
        # Whether a request can be sent to the sandbox now.
        self.ready = session.phase is Phase.READY and sandbox is not None
        self.sleeps = session.phase in ASLEEP
        if sandbox is self.sandbox:
            return
        self.sandbox = sandbox
        self._picod, self._prefixes, self._routes, self._ports = None, (), (), ()
        self._others = {}
        pools = self._pools
        if sandbox is None:
            return
        self._picod = Port(pools.of(sandbox.picod))
        # Python's sort is stable: of two equal prefixes the one declared first serves.
        routes = sorted(session.routes, key=lambda route: -len(route.path_prefix))
        known = [(r, e) for r in routes if (e := sandbox.ports.get(r.port)) is not None]
        self._prefixes = tuple(_absolute(route.path_prefix) for route, _ in known)
        self._routes = tuple(route for route, _ in known)
        self._ports = tuple(
            Port(pools.of(endpoint), passes_credentials=route.passes_credentials) for route, endpoint in known
        )

    def picod(self) -> Port:
        """The sandbox's PicoD. The session must be ready."""
        assert self._picod is not None
        return self._picod

    def is_picod(self, port: Port) -> bool:
        """Whether `port` is the sandbox's PicoD."""
        return port is self._picod

    def port(self, path: bytes) -> Port:
        """The port that serves `path`. The session must be ready. NotFound when none does."""
        if self._prefixes == _EVERYTHING:
            return self._ports[0]
        if self.session.routes:
            return self._ports[longest_prefix(self._prefixes, path)]
        return self.picod()

    def reach(self, number: int) -> Port:
        """The port of that number. The session must be ready. NotFound when it is neither declared nor exposed."""
        for route, port in zip(self._routes, self._ports, strict=True):
            if route.port == number:
                return port
        assert self.sandbox is not None
        how = self.sandbox.others
        if number not in self.session.exposed or how is None:
            raise NotFound("this port of the session is neither declared nor exposed", reason="no_such_port")
        known = self._others.get(number)
        if known is None:
            known = self._others[number] = Port(self._pools.of(replace(how, port=number)))
        return known

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

    def __init__(self, store: SessionTable, pools: Pools) -> None:
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
            entry.renew(session)
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
            entry.renew(session)
        return entry

    def renew(self, entry: Entry, session: Session) -> None:
        """Take a newer record for `entry`, which a request has, and for the table."""
        entry.renew(session)
        self.keep(session)

    def in_use(self, id: SessionId | None) -> list[Entry]:
        """Entries with requests under way: the session's, or all."""
        some = self._entries.values() if id is None else filter(None, [self._entries.get(id)])
        return [entry for entry in some if entry.in_flight]

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
