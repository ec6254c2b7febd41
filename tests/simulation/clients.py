"""Clients: they make sessions, use them for a while with uneven gaps, and leave in every possible way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from typing import TYPE_CHECKING, Any

from agentcube.errors import (
    AgentCubeError,
    CapacityExhausted,
    Conflict,
    InvalidTransition,
    LimitExceeded,
    SessionBusy,
    SessionFailed,
    SessionNotFound,
)
from agentcube.manager.creation import Repeatable, Wish
from agentcube.manager.service import Changes
from agentcube.model.lifecycle import LIVE
from agentcube.ports.tokens import Subject
from tests.simulation.errors import Rule

if TYPE_CHECKING:
    from tests.simulation.world import World

_RETRIES = 4

SPANS_S = {"warm": (12.0, 3.0), "cold": (20.0,)}
"""Per template: after how long sessions end unused, and fall asleep."""


@dataclass(slots=True)
class Answer:
    """What came back over HTTP. Status 0: the connection broke before an answer was whole."""

    status: int
    session: str = ""
    code: str = ""
    body: bytes = b""


class HttpCall(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.transport: Any = None
        self._data = b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        if not found or self.answer.done():
            return
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        if len(body) >= int(fields.get(b"content-length", b"0")):
            code = body.partition(b'"code":')[2].split(b'"')[1].decode() if b'"code":' in body else ""
            self.answer.set_result(
                Answer(int(head[9:12]), fields.get(b"x-agentcube-session-id", b"").decode(), code, body)
            )

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(Answer(0))


@dataclass(slots=True)
class Holding:
    """A session as its client knows it."""

    id: str
    template: str
    counted: int = 0
    ended: bool = False


class Client:
    """One client. `strict`: everything works now, so whatever fails without a reason is wrong."""

    def __init__(self, world: World, name: str, random: Random) -> None:
        self._world = world
        self._random = random
        self._subject = Subject(name)
        self._keys = 0
        self.done = 0

    async def run(self) -> None:
        """Session after session until the world says that it is enough."""
        random = self._random
        await asyncio.sleep(random.random() * 3)
        while not self._world.closing:
            holding = await self._open()
            if holding is None:
                await asyncio.sleep(0.5 + random.random())
                continue
            for _ in range(1 + int(random.expovariate(0.15))):
                if self._world.closing or holding.ended:
                    break
                await self._step(holding)
                await asyncio.sleep(self._gap_s(holding))
            if not holding.ended and random.random() < 0.5:
                await self._delete(holding)

    def _gap_s(self, holding: Holding) -> float:
        """Short mostly, sometimes long; and at times just short of what would put the session to sleep or end it."""
        random = self._random
        if random.random() < 0.06:
            return random.choice(SPANS_S[holding.template]) - 1.4 * random.random()
        return min(random.paretovariate(1.2) * 0.3 - 0.2, 30.0)

    # Making sessions

    async def _open(self) -> Holding | None:
        random, world = self._random, self._world
        template = random.choice(world.templates)
        if random.random() < 0.5:
            return await self._open_by_request(template)
        keyed = random.random() < 0.7
        self._keys += 1
        repeat = Repeatable(f"{self._subject.name}-{self._keys}", "body") if keyed else None
        wish = Wish(template=world.keys[template])
        if random.random() < 0.3:
            wish = Wish(template=world.keys[template], ttl=timedelta(seconds=20 + 20 * random.random()))
        for attempt in range(_RETRIES if keyed else 1):
            try:
                # A client that loses patience leaves; with a key it comes again.
                timeout_s = 0.05 if random.random() < 0.1 else 25.0
                session = await self._call(
                    lambda service: service.sessions.create(wish, self._subject, repeat), timeout_s
                )
            except (CapacityExhausted, LimitExceeded):
                return None
            except Conflict:
                return None  # the key's session has ended meanwhile
            except AgentCubeError as error:
                self._unless_strict(f"create {attempt}", error, patient=timeout_s > 1)
                await asyncio.sleep(random.random())
                continue
            return self._given(session.id, template, session.phase in LIVE)
        return None

    async def _open_by_request(self, template: str) -> Holding | None:
        answer = await self._request(template, "", 0.001)
        if answer.status == 200:
            holding = self._given(answer.session, template, True)
            self._count(holding, answer, 0)
            return holding
        if answer.status != 0 and answer.code not in ("capacity_exhausted", "limit_exceeded"):
            self._unless_strict("create by request", answer)
        return None

    def _given(self, id: str, template: str, live: bool) -> Holding | None:
        self._world.checker.known(id).given = True
        self._world.checker.note(f"{id[:6]} is given to {self._subject.name}")
        self.done += 1
        return Holding(id, template) if live else None

    # Using them

    async def _step(self, holding: Holding) -> None:
        random = self._random
        chance = random.random()
        if chance < 0.70:
            await self._use(holding, 0.001 + 0.05 * random.random())
        elif chance < 0.78:
            await self._use(holding, random.choice((3.0, 6.0, 14.0)))
        elif chance < 0.84:
            await asyncio.gather(*(self._any_of(holding) for _ in range(2 + random.randrange(4))))
        elif chance < 0.88:
            await self._manage(holding, "suspend", lambda s: s.suspend(holding.id, self._subject))
        elif chance < 0.92:
            await self._manage(holding, "resume", lambda s: s.resume(holding.id, self._subject))
        elif chance < 0.96:
            changes = Changes(ttl=timedelta(seconds=30), metadata={"n": str(int(chance * 100))})
            await self._manage(holding, "change", lambda s: s.change(holding.id, changes, self._subject))
        else:
            await self._manage(holding, "get", lambda s: s.get(holding.id, self._subject))

    async def _any_of(self, holding: Holding) -> None:
        """One of several things that are done with the session at once."""
        random = self._random
        await asyncio.sleep(0.01 * random.random())
        match random.randrange(8):
            case 0 | 1 | 2:
                await self._use(holding, 0.01 + 0.2 * random.random(), alone=False)
            case 3 | 4:
                await self._manage(holding, "suspend", lambda s: s.suspend(holding.id, self._subject))
            case 5:
                await self._manage(holding, "resume", lambda s: s.resume(holding.id, self._subject))
            case 6:
                changes = Changes(metadata={"n": str(random.randrange(100))})
                await self._manage(holding, "change", lambda s: s.change(holding.id, changes, self._subject))
            case _:
                if random.random() < 0.3:
                    holding.ended = True
                    await self._delete(holding)

    async def _use(self, holding: Holding, work_s: float, *, alone: bool = True) -> None:
        before = holding.counted
        answer = await self._request(holding.template, holding.id, work_s)
        if answer.status == 200:
            self._count(holding, answer, before if alone else 0)
        elif answer.code == "session_not_found":
            self._world.checker.told_absent(holding.id)
            holding.ended = True
        elif answer.code in ("session_failed", "sandbox_died"):
            self._world.checker.told_failed(holding.id)
            holding.ended = True
        elif answer.status and self._alive(holding):
            self._unless_strict(f"request to {holding.id}", answer)

    def _alive(self, holding: Holding) -> bool:
        """Whether nothing that is going on with it explains a refusal."""
        record = self._world.checker.record(holding.id)
        return record is not None and record.phase in LIVE

    def _count(self, holding: Holding, answer: Answer, before: int) -> None:
        if answer.session != holding.id:
            raise self._world.checker.wrong(Rule.STATE, f"{holding.id} was answered for {answer.session}")
        sandbox, count = answer.body.decode().split()
        self._world.checker.served(holding.id, sandbox, int(count), before)
        holding.counted = max(holding.counted, int(count))
        self.done += 1

    async def _manage(self, holding: Holding, what: str, work: Any) -> None:
        try:
            await self._call(lambda service: work(service.sessions), 25.0)
            self.done += 1
        except SessionNotFound:
            self._world.checker.told_absent(holding.id)
            holding.ended = True
        except (SessionBusy, InvalidTransition):
            pass
        except SessionFailed:
            self._world.checker.told_failed(holding.id)
            holding.ended = True
        except AgentCubeError as error:
            if self._alive(holding):
                self._unless_strict(f"{what} {holding.id}", error)

    async def _delete(self, holding: Holding) -> None:
        self._world.checker.known(holding.id).unwanted = True
        for _ in range(_RETRIES):
            try:
                await self._call(
                    lambda s: s.sessions.delete(holding.id, self._subject), 10.0, repeatable=True
                )
            except SessionNotFound:
                pass
            except AgentCubeError as error:
                self._unless_strict(f"delete {holding.id}", error)
                await asyncio.sleep(self._random.random())
                continue
            self._world.checker.told_absent(holding.id)
            return

    # How they reach the server

    async def _call(self, work: Any, timeout_s: float, *, repeatable: bool = False) -> Any:
        world = self._world
        found = world.managers.some()
        return await world.network.call(
            world.loop.world,
            found.process if found else None,
            lambda: work(found.manager.service if found else None),
            timeout_s=timeout_s,
            repeatable=repeatable,
        )

    async def _request(self, template: str, session: str, work_s: float) -> Answer:
        world, random = self._world, self._random
        if not world.routers:
            await asyncio.sleep(0.1)
            return Answer(0)
        router = random.choice(world.routers)
        await asyncio.sleep(world.network.weather.delay_s)
        if not router.process.alive:
            return Answer(0)
        call = HttpCall()
        if world.checker.trace is not None:
            world.checker.note(f"{session[:6]} {self._subject.name} asks {router.process} for {work_s:.3f} s")
        world.network.connect(world.loop.world, call, router.process, router.accept)
        call.transport.write(
            b"GET /v1/namespaces/default/code-interpreters/%b/invocations/%.4f HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Bearer %b\r\n%b\r\n"
            % (
                template.encode(),
                work_s,
                self._subject.name.encode(),
                b"X-Agentcube-Session-Id: %b\r\n" % session.encode() if session else b"",
            )
        )
        patience_s = work_s + (0.02 if random.random() < 0.03 else 40.0)
        try:
            async with asyncio.timeout(patience_s):
                return await call.answer
        except TimeoutError:
            if patience_s > 30 and world.strict and session and self._world.checker.record(session):
                raise world.checker.wrong(
                    Rule.WORKS, f"no answer from session {session} in {patience_s:.0f} s"
                ) from None
            return Answer(0)
        finally:
            call.transport.close()

    def _unless_strict(self, what: str, error: AgentCubeError | Answer, *, patient: bool = True) -> None:
        if self._world.strict and patient:
            raise self._world.checker.wrong(
                Rule.WORKS, f"all is well, and {what} of {self._subject.name} got {error!r}"
            )
