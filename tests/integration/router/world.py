"""A Router on a real socket, small real servers behind it, and doubles of its collaborators."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from agentcube import http1
from agentcube.errors import SessionNotFound, TemplateNotFound, Unauthenticated
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.sandbox import Endpoint, Isolation, Port, Sandbox
from agentcube.model.session import Session
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.store import SessionTable
from agentcube.ports.tokens import Link, Subject
from agentcube.router import Router, RouterSettings
from agentcube.stores.feed import Feed

AGENT = TemplateKey(Kind.AGENT_RUNTIME, "default", "agent")
CODE = TemplateKey(Kind.CODE_INTERPRETER, "default", "code")
AGENT_PATH = "/v1/namespaces/default/agent-runtimes/agent/invocations"
CODE_PATH = "/v1/namespaces/default/code-interpreters/code/invocations"
SID = "s" * 32
NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAST = RouterSettings(sweep_interval_s=0.02, flush_interval_s=0.02, linger_timeout_s=0.5)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Auth:
    """`Bearer <name>` is <name>; `root` is an admin."""

    def authenticate(self, authorization: bytes | None) -> Subject:
        scheme, _, name = (authorization or b"").decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not name:
            raise Unauthenticated("a token is required")
        return Subject(name, admin=name == "root")


class Signer:
    """Readable tokens, counted."""

    public_keys = ()

    def __init__(self) -> None:
        self.signed = 0

    def for_sandbox(self, session: SessionId, sandbox: SandboxId, subject: Subject) -> str:
        self.signed += 1
        return f"for-{session}-{sandbox}-{subject.name}"

    def for_binding(self, session: SessionId, sandbox: SandboxId) -> str:
        raise AssertionError("the Router binds nothing")

    def for_manager(self, subject: Subject) -> str:
        self.signed += 1
        return f"manager-{subject.name}"


class Links:
    """Readable share links: `<session>/<port>/<key>/<expires>`. Counts what it was asked."""

    def __init__(self) -> None:
        self.verified = 0

    def link(self, token: str) -> Link:
        self.verified += 1
        parts = token.split("/")
        if len(parts) != 4:
            raise Unauthenticated("no token")
        return Link(SessionId(parts[0]), int(parts[1]), parts[2], float(parts[3]))


class Sessions:
    """A SessionTable."""

    def __init__(self) -> None:
        self.known: dict[str, Session] = {}
        self.behind: dict[str, Session] = {}  # known to the store, not yet to this process
        self.touched: dict[str, datetime] = {}
        self.touches = 0
        self.feed = Feed()

    def peek(self, id: SessionId) -> Session | None:
        return self.known.get(id)

    async def get(self, id: SessionId) -> Session:
        if id in self.behind:
            self.known[id] = self.behind[id]
        if id not in self.known:
            raise SessionNotFound()
        return self.known[id]

    def changes(self) -> AsyncIterator[SessionId | None]:
        return self.feed.subscribe()

    def change(self, session: Session) -> None:
        """The session is this now, and everybody hears of it."""
        self.known[session.id] = session
        self.feed.publish([session.id])

    async def touch(self, activity: Mapping[SessionId, datetime]) -> None:
        self.touches += 1
        self.touched.update(activity)


class Control:
    """A control plane that does what a test tells it to."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.created: list[tuple[TemplateKey, Subject]] = []
        self.keys: list[str] = []
        self.woken: list[str] = []
        self.suspected: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.make: Session | Exception = TemplateNotFound()
        self.wakes_to: Session | Exception | None = None
        self.suspects_to: Session | Exception | None = None

    async def create_for(self, template: TemplateKey, subject: Subject, *, key: str = "") -> Session:
        self.created.append((template, subject))
        self.keys.append(key)
        await self.gate.wait()
        if isinstance(self.make, Exception):
            raise self.make
        session = replace(self.make, template=template, owner=subject.name)
        self.sessions.known[session.id] = session
        return session

    async def wake(self, id: SessionId) -> Session:
        self.woken.append(id)
        await self.gate.wait()
        return self._now(id, self.wakes_to)

    async def suspect(self, id: SessionId) -> Session:
        self.suspected.append(id)
        await self.gate.wait()
        return self._now(id, self.suspects_to)

    def _now(self, id: SessionId, outcome: Session | Exception | None) -> Session:
        if isinstance(outcome, Exception):
            raise outcome
        if outcome is not None:
            self.sessions.change(outcome)
        if id not in self.sessions.known:
            raise SessionNotFound()
        return self.sessions.known[id]


@dataclass
class World:
    """One running Router and everything around it."""

    router: Router
    serving: asyncio.Task[None]
    port: int
    directory: Path
    sessions: Sessions
    control: Control
    signer: Signer
    links: Links
    stack: AsyncExitStack
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> Peer:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)
        self.writers.append(writer)
        return Peer(reader, writer)

    async def ask(self, *args: Any, **kwargs: Any) -> Answer:
        """One request on a connection of its own."""
        peer = await self.connect()
        await peer.send(*args, **kwargs)
        answer = await peer.answer(head=bool(args) and args[0].startswith("HEAD"))
        peer.close()
        return answer

    async def turns(self, count: int = 20) -> None:
        """Return when the Router has surely seen everything that was sent before."""
        for _ in range(count):
            assert (await self.ask("GET /health/live", session=None)).status == 200

    async def unix(self, handler: Handler, name: str = "picod") -> Endpoint:
        path = str(self.directory / name)
        server = await asyncio.start_unix_server(_tolerant(handler), path, limit=1 << 22)
        self.stack.push_async_callback(_stop, server)
        return Endpoint(scheme="unix", path=path)

    async def tcp(self, handler: Handler) -> Endpoint:
        server = await asyncio.start_server(_tolerant(handler), "127.0.0.1", 0, limit=1 << 22)
        self.stack.push_async_callback(_stop, server)
        return Endpoint(scheme="tcp", host="127.0.0.1", port=server.sockets[0].getsockname()[1])

    def agent(self, endpoint: Endpoint, **changes: Any) -> Session:
        """A ready AgentRuntime session whose port 8080 is at `endpoint`, known to the store."""
        ports = {8080: endpoint}
        return self.add(session(AGENT, ports, (Port(port=8080),), **changes))

    def code(self, picod: Endpoint, **changes: Any) -> Session:
        """A ready CodeInterpreter session, known to the store."""
        return self.add(session(CODE, {}, (), picod=picod, **changes))

    def add(self, made: Session) -> Session:
        self.sessions.known[made.id] = made
        return made


def session(
    key: TemplateKey,
    ports: Mapping[int, Endpoint],
    routes: tuple[Port, ...],
    *,
    picod: Endpoint | None = None,
    **changes: Any,
) -> Session:
    sandbox = Sandbox(
        id=SandboxId("sb-1"),
        driver="test",
        handle="{}",
        isolation=Isolation.PROCESS,
        picod=picod or Endpoint(scheme="unix", path="/nonexistent"),
        ports=ports,
    )
    made = Session(
        id=SessionId(SID),
        template=key,
        generation=1,
        owner="alice",
        phase=Phase.READY,
        created_at=NOW,
        last_activity_at=NOW,
        expires_at=NOW + timedelta(days=1),
        idle_timeout=timedelta(minutes=15),
        routes=routes,
        sandbox=sandbox,
    )
    return replace(made, **changes)


@dataclass
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    trailers: list[tuple[bytes, bytes]]

    def __getitem__(self, name: str) -> str:
        return next(v for k, v in self.headers if k == name.encode()).decode()

    def __contains__(self, name: str) -> bool:
        return any(k == name.encode() for k, _ in self.headers)

    @property
    def problem(self) -> dict[str, Any]:
        assert self["content-type"] == "application/problem+json"
        assert self["agentcube-error"] == "router"
        document = json.loads(self.body)
        assert document["status"] == self.status
        assert document["request_id"] == self["x-request-id"]
        assert isinstance(document, dict)
        return document


@dataclass
class Peer:
    """A client's or a server's end of a connection, on raw bytes."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes = b""

    async def send(
        self,
        first: str = "",
        *headers: str,
        body: bytes = b"",
        token: str | None = "alice",
        session: str | None = SID,
    ) -> None:
        lines = [f"{first or f'GET {AGENT_PATH}/'} HTTP/1.1", "Host: router.test"]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        if session is not None:
            lines.append(f"X-AgentCube-Session-Id: {session}")
        lines += headers
        if body and not any(h.lower().startswith("transfer-encoding") for h in headers):
            lines.append(f"Content-Length: {len(body)}")
        await self.write("\r\n".join((*lines, "", "")).encode("latin-1") + body)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        while (end := self.rest.find(b"\r\n\r\n")) < 0:
            data = await self.reader.read(65536)
            if not data:
                assert not self.rest, f"the connection ended within a head: {self.rest!r}"
                raise ConnectionResetError("the connection ended before a head")
            self.rest += data
        head, self.rest = self.rest[: end + 4], self.rest[end + 4 :]
        return head

    async def answer(self, *, head: bool = False) -> Answer:
        parsed = http1.parse_response(await self.head(), b"HEAD" if head else b"GET")
        return await self._whole(parsed)

    async def request(self) -> tuple[http1.RequestHead, bytes]:
        parsed = http1.parse_request(await self.head())
        answer = await self._whole(parsed)
        return parsed, answer.body

    async def _whole(self, parsed: http1.RequestHead | http1.ResponseHead) -> Answer:
        body, payload = http1.track(parsed.body), list[bytes]()
        while not body.done:
            taken = body.feed(self.rest, payload)
            self.rest = self.rest[taken:]
            if body.done:
                break
            self.rest = await self.reader.read(1 << 18)
            if not self.rest:
                assert parsed.body == http1.UNTIL_CLOSE, "the connection ended within a body"
                break
        status = parsed.status if isinstance(parsed, http1.ResponseHead) else 0
        trailers = body.trailers if isinstance(body, http1.ChunkedBody) else []
        return Answer(status, parsed.headers, b"".join(payload), trailers)

    async def line(self) -> bytes:
        while b"\n" not in self.rest:
            data = await self.reader.read(65536)
            assert data, f"the connection ended within a line: {self.rest!r}"
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return line

    async def to_end(self) -> bytes:
        """Everything up to the end of the connection; raises ConnectionResetError when it was broken off."""
        data = self.rest + await self.reader.read(-1)
        self.rest = b""
        return data

    def close(self) -> None:
        self.writer.close()


def _tolerant(handler: Handler) -> Handler:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    return serve


async def _stop(server: asyncio.AbstractServer) -> None:
    server.close()


@asynccontextmanager
async def world(
    settings: RouterSettings = FAST, *, store: SessionTable | None = None, **kwargs: Any
) -> AsyncIterator[World]:
    """A Router with no sessions; with those of `store`, if that is given."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sessions, signer, links = Sessions(), Signer(), Links()
        control = Control(sessions)
        router = Router(
            settings,
            store=store or sessions,
            control=control,
            auth=Auth(),
            signer=signer,
            links=links,
            manager=Endpoint(scheme="unix", path=str(directory / "manager")),
            **kwargs,
        )
        listener = socket.create_server(("127.0.0.1", 0))
        serving = asyncio.get_running_loop().create_task(router.serve(listener))
        made = World(
            router, serving, listener.getsockname()[1], directory, sessions, control, signer, links, stack
        )
        try:
            yield made
        finally:
            for writer in made.writers:
                writer.close()
            if not serving.done():
                serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


def replying(answer: bytes, seen: list[Any] | None = None) -> Handler:
    """A server that gives every request the same answer, on connections that stay open."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = Peer(reader, writer)
        while True:
            if not peer.rest:
                peer.rest = await reader.read(65536)
                if not peer.rest:
                    return
            request = await peer.request()
            if seen is not None:
                seen.append(request)
            await peer.write(answer)

    return handle


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


async def eventually(predicate: Callable[[], Any], *, within_s: float = 5.0) -> None:
    """Return when `predicate` holds; it is about state, which a loop turn may change."""
    async with asyncio.timeout(within_s):
        while not predicate():
            await asyncio.sleep(0.002)
