"""Several managers as processes, one Redis server, and one machine, which is here, in the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agentcube.drivers.fake import FakeDriver
from agentcube.errors import SessionNotFound
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.session import Session
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.store import SessionQuery, Store
from agentcube.runtime.keys import load_or_make_key
from agentcube.stores.redis.store import RedisStore
from agentcube.testing.eventually import eventually
from agentcube.testing.redis_server import RedisServer
from tests.integration.redis.world import hasty, opened
from tests.integration.replicas.wire import Caller, answer

KEY = TemplateKey(Kind.CODE_INTERPRETER, "default", "my-interpreter")


class Machine:
    """The one driver of all, and what gets lost or late on the way to it."""

    def __init__(self) -> None:
        self.driver = FakeDriver()
        self.calls: list[tuple[str, str, SandboxId | None]] = []
        """By whom, what, and of which sandbox: as they were sent."""
        self._gates: dict[tuple[str, str], asyncio.Event] = {}
        self._serving: list[asyncio.Future[None]] = []
        self._sent: defaultdict[tuple[str, str], asyncio.Event] = defaultdict(asyncio.Event)

    @property
    def boxes(self) -> Any:
        return self.driver.machine.boxes

    def hold(self, replica: str, operation: str) -> asyncio.Event:
        """That replica's calls of the operation arrive only when the event is set."""
        return self._gates.setdefault((replica, operation), asyncio.Event())

    async def sent(self, replica: str, operation: str) -> None:
        """Return once the replica has made such a call."""
        async with asyncio.timeout(60):
            await self._sent[replica, operation].wait()

    def counts(self, operation: str) -> Counter[SandboxId | None]:
        """How often it was asked of each sandbox, by whomever."""
        return Counter(id for _, what, id in self.calls if what == operation)

    async def close(self) -> None:
        """Let everything that is held arrive; returns when nobody waits for an answer any more."""
        for gate in self._gates.values():
            gate.set()
        await asyncio.gather(*self._serving)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One replica's connection."""
        self._serving.append(serving := asyncio.ensure_future(self._serve(reader, writer)))
        await serving

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = ""

        async def do(call: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            nonlocal name
            if call == "hello":
                (name,) = args
                return None
            of = args[0] if args else None
            self.calls.append((name, call, getattr(of, "id", of)))
            self._sent[name, call].set()
            if gate := self._gates.get((name, call)):
                await gate.wait()
            return await getattr(self.driver, call)(*args, **options)

        await answer(reader, writer, do)


class Nursery:
    """Where replicas are forked from."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.replicas.replica"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def fork(self, *arguments: Any) -> int:
        """A replica's pid as a descriptor."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        return os.pidfd_open(int(self._process.stdout.readline()))

    def close(self) -> None:
        self._process.communicate()


class Replica:
    """One manager's process."""

    def __init__(self, name: str, pidfd: int, caller: Caller) -> None:
        self.name = name
        self._pidfd = pidfd
        self._caller = caller

    def signal(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    async def kill(self) -> None:
        """SIGKILL, as a crash would."""
        self.signal(signal.SIGKILL)
        await self._ended()

    async def end(self) -> None:
        """SIGTERM; it hands over."""
        self.signal(signal.SIGTERM)
        await self._ended()

    async def _ended(self) -> None:
        await eventually(lambda: bool(select.select([self._pidfd], [], [], 0)[0]), within=60)

    async def create(self, key: str = "", **wish: Any) -> Session:
        session: Session = await self._caller.call("create", {"template": KEY} | wish, key)
        return session

    async def call(self, name: str, *args: Any) -> Any:
        return await self._caller.call(name, *args)

    def close(self) -> None:
        self._caller.close()
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        os.close(self._pidfd)


class World:
    """The test's own view of the store, the machine, and the replicas by name."""

    def __init__(self, store: RedisStore, machine: Machine) -> None:
        self.store: Store = store
        self.machine = machine
        self.replicas: dict[str, Replica] = {}

    def __getitem__(self, name: str) -> Replica:
        return self.replicas[name]

    async def put(self, pool: int = 0, **spec: Any) -> None:
        """Put the template by the first replica."""
        manifest = {"kind": "CodeInterpreter", "spec": {"template": {}, "warmPoolSize": pool, **spec}}
        await next(iter(self.replicas.values())).call("put", KEY, manifest)

    async def sessions(self) -> list[Session]:
        return list((await self.store.list(SessionQuery(limit=1000))).sessions)

    async def phase(self, id: SessionId) -> Phase | None:
        try:
            return (await self.store.get(id)).phase
        except SessionNotFound:
            return None

    async def rests(self) -> bool:
        """Nothing is to be done, and exactly those sandboxes exist that are on record, each its own session's."""
        sessions = await self.sessions()
        named = [s.sandbox.id for s in sessions if s.sandbox] + [e.id for e in await self.store.list_warm()]
        assert len(named) == len(set(named)), "a sandbox is on record twice"
        for session in sessions:
            box = self.machine.boxes.get(session.sandbox.id) if session.sandbox else None
            if session.phase is Phase.READY and box is not None:
                assert box.session == session.id, "a Ready session's sandbox is bound to another"
                assert not box.asleep, "a Ready session's sandbox sleeps"
        resting = all(s.phase in (Phase.READY, Phase.PAUSED, Phase.FAILED) for s in sessions)
        return resting and set(named) == set(self.machine.boxes)

    async def settled(self) -> None:
        await eventually(self.rests, within=60)


@asynccontextmanager
async def replicas(
    nursery: Nursery, server: RedisServer, folder: Path, names: str, **settings: Any
) -> AsyncIterator[World]:
    """A world with a replica for each letter of `names`."""
    redis = hasty()
    load_or_make_key(folder / "keys")
    machine = Machine()
    async with opened(server.url, redis) as store, contextlib.AsyncExitStack() as stack:
        listener = await asyncio.start_unix_server(machine.serve, folder / "machine.sock")
        stack.callback(listener.close)
        stack.push_async_callback(machine.close)
        world = World(store, machine)
        told = {"observe_s": 0.2, "lease_s": 1.0, **settings}
        pids = {name: nursery.fork(server.url, redis.prefix, str(folder), name, told) for name in names}
        for name, pidfd in pids.items():
            caller = Caller()
            stack.callback(Replica(name, pidfd, caller).close)
            path = folder / f"{name}.sock"
            await eventually(lambda path=path, caller=caller: _connected(caller, path), within=60)  # type: ignore[misc]
            world.replicas[name] = Replica(name, pidfd, caller)
        yield world


async def _connected(caller: Caller, path: Path) -> bool:
    try:
        await caller.connect(path)
    except OSError:
        return False
    return True
