"""The life of sessions with sleep, under any sequence of calls, faults, crashes and lapses of time."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Coroutine
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agentcube.drivers.fake import FakeDriver, FakeMachine
from agentcube.errors import AgentCubeError, DriverFailed
from agentcube.manager.creation import Wish
from agentcube.manager.manager import Manager
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SessionId
from agentcube.model.lifecycle import TRANSITIONS, Phase
from agentcube.model.session import WAKE_FAILED, Session
from agentcube.model.template import Kind, TemplateKey
from agentcube.ports.store import SessionQuery
from agentcube.ports.tokens import LOCAL
from agentcube.runtime.keys import RsaSigner
from agentcube.stores.memory import MemoryStore
from agentcube.testing.clock import FakeClock
from agentcube.testing.eventually import eventually

R = TypeVar("R")

KEY = TemplateKey(Kind.CODE_INTERPRETER, "default", "x")
AFTER, IDLE, TTL = timedelta(minutes=1), timedelta(minutes=10), timedelta(hours=1)
MANIFEST = {
    "kind": "CodeInterpreter",
    "spec": {"template": {}, "suspendAfter": "1m", "sessionTimeout": "10m"},
}
SESSIONS_MAX = 3
QUIET_TURNS = 20
WHICH = st.integers(0, SESSIONS_MAX - 1)
ASKS = st.lists(
    st.tuples(st.sampled_from(["request", "suspend", "resume", "touch", "look"]), WHICH),
    min_size=1,
    max_size=4,
)


class SlowDriver(FakeDriver):
    """A driver whose calls take some turns of the event loop, so that others come between."""

    def __init__(self, machine: FakeMachine, chance: random.Random) -> None:
        super().__init__(machine)
        self.chance = chance

    async def _begin(self, operation: Any, id: Any) -> Any:
        await turns(self.chance)
        fault = await super()._begin(operation, id)
        await turns(self.chance)
        return fault


class SlowStore(MemoryStore):
    """A store whose commits take some turns, before and after they are made."""

    chance = random.Random(0)

    async def _commit(self, operation: Any) -> Any:
        await turns(self.chance)
        answer = await super()._commit(operation)
        await turns(self.chance)
        return answer


async def turns(chance: random.Random) -> None:
    for _ in range(chance.randrange(4)):
        await asyncio.sleep(0)


@cache
def signer() -> RsaSigner:
    return RsaSigner(generate_private_key(public_exponent=65537, key_size=2048))


class SleepMachine(RuleBasedStateMachine):
    """The manager runs while a rule does; every rule ends when nobody looks after a session any more."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.chance = random.Random(0)
        self.store = SlowStore()
        self.machine = FakeMachine()
        self.clock = FakeClock()
        self.dead: set[str] = set()  # sandboxes that died; the next look finds them
        self.seqs: dict[SessionId, int] = {}
        self.start()

    def teardown(self) -> None:
        self.kill()
        self.runner.close()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        return self.runner.run(work)

    def start(self) -> None:
        async def begin() -> None:
            self.driver = SlowDriver(self.machine, self.chance)
            self.manager = Manager(
                ManagerSettings(observe_s=3600, abandoned_s=0.001),
                store=self.store,
                driver=self.driver,
                signer=signer(),
                clock=self.clock,
            )
            self.running = asyncio.ensure_future(self.manager.run())
            await self.manager.recovered()
            await self.quiet()

        self.run(begin())

    def kill(self) -> None:
        async def end() -> None:
            self.running.cancel()
            await asyncio.wait({self.running})

        self.run(end())

    async def quiet(self) -> None:
        """Return when nobody looks after a session, nor will before time passes."""
        still = 0
        while still < QUIET_TURNS:
            if await self.manager.deadlines.sweep() or self.manager._reconciler.flights:
                still = 0
                await eventually(lambda: self.manager._reconciler.flights == 0)
            await asyncio.sleep(0)
            still += 1

    @initialize(seed=st.integers(0, 1 << 32))
    def template(self, seed: int) -> None:
        self.chance.seed(seed)
        self.store.chance = self.chance
        self.run(self.manager.service.catalog.put(KEY, MANIFEST))

    def sessions(self) -> list[Session]:
        return list(self.run(self.store.list(SessionQuery())).sessions)

    def pick(self, which: int) -> Session | None:
        known = self.sessions()
        return known[which % len(known)] if known else None

    # What clients do

    @precondition(lambda self: len(self.sessions()) < SESSIONS_MAX)
    @rule()
    def create(self) -> None:
        self.run(self.manager.service.sessions.create(Wish(template=KEY, ttl=TTL), LOCAL))

    @rule(asks=ASKS)
    def ask(self, asks: list[tuple[str, int]]) -> None:
        """Several at once; who got an answer got the truth."""

        async def all_of_them() -> None:
            chosen = [(what, self.pick_now(which)) for what, which in asks]
            work = [self.one(what, session) for what, session in chosen if session is not None]
            outcomes = await asyncio.gather(*work, return_exceptions=True)
            assert all(o is None or isinstance(o, AgentCubeError) for o in outcomes), outcomes
            await self.quiet()

        self.run(all_of_them())

    def pick_now(self, which: int) -> Session | None:
        known = sorted(self.store._live.sessions.values(), key=lambda s: (s.created_at, s.id))
        return known[which % len(known)] if known else None

    async def one(self, what: str, session: Session) -> None:
        service = self.manager.service
        match what:
            case "request":
                assert (await service.wake(session.id)).phase is Phase.READY
            case "suspend":
                assert (await service.sessions.suspend(session.id, LOCAL)).phase is Phase.PAUSED
            case "resume":
                assert (await service.sessions.resume(session.id, LOCAL)).phase is Phase.READY
            case "touch":
                await self.store.touch({session.id: self.clock.now()})
            case "look":
                await service.suspect(session.id)

    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        session = self.pick(which)
        if session is not None:
            self.run(self.ended(session))

    async def ended(self, session: Session) -> None:
        await self.manager.service.sessions.delete(session.id, LOCAL)
        await self.quiet()

    # What happens

    @rule(seconds=st.integers(1, 700))
    def wait(self, seconds: int) -> None:
        async def pass_time() -> None:
            self.clock.advance(timedelta(seconds=seconds))
            await self.quiet()

        self.run(pass_time())

    @rule(
        faults=st.lists(
            st.tuples(st.sampled_from(["suspend", "resume"]), st.booleans()), min_size=1, max_size=4
        )
    )
    def refuse(self, faults: list[tuple[Any, bool]]) -> None:
        for operation, done in faults:
            self.driver.fail(operation, DriverFailed("no"), done=done)

    @rule(which=WHICH)
    def die(self, which: int) -> None:
        session = self.pick(which)
        if session is not None and session.sandbox is not None:
            self.driver.crash(session.sandbox.id)
            self.dead.add(session.sandbox.id)

    @rule(asks=ASKS, after=st.integers(0, 40), seconds=st.integers(0, 100))
    def crash(self, asks: list[tuple[str, int]], after: int, seconds: int) -> None:
        """The manager is killed in the middle of what it was asked, and started again."""

        async def begin() -> None:
            chosen = [(what, self.pick_now(which)) for what, which in asks]
            work = [asyncio.ensure_future(self.one(w, s)) for w, s in chosen if s is not None]
            for _ in range(after):
                await asyncio.sleep(0)
            self.running.cancel()
            await asyncio.wait({self.running})
            for doing in work:
                doing.cancel()
            await asyncio.gather(*work, return_exceptions=True)

        self.run(begin())
        self.clock.advance(timedelta(seconds=seconds))
        self.start()

    # Always

    @invariant()
    def every_session_rests_and_its_sandbox_is_as_it_says(self) -> None:
        stored = self.sessions()
        named = {s.sandbox.id for s in stored if s.sandbox is not None}
        assert set(self.machine.boxes) == named
        for session in stored:
            assert session.phase in (Phase.READY, Phase.PAUSED, Phase.FAILED)
            if session.sandbox is None or session.sandbox.id in self.dead:
                continue
            box = self.machine.boxes[session.sandbox.id]
            assert box.session == session.id
            if session.reason != WAKE_FAILED:
                assert box.asleep == (session.phase is Phase.PAUSED)

    @invariant()
    def nothing_is_overdue(self) -> None:
        for session in self.sessions():
            assert session.due_at is not None
            assert session.due_at <= session.expires_at

    @invariant()
    def histories_are_walks_through_the_table_and_only_grow(self) -> None:
        steps = {(phase, to) for (phase, _), to in TRANSITIONS.items()}
        for session in self.sessions():
            assert session.history[-1].phase is session.phase
            assert session.history[-1].seq >= self.seqs.get(session.id, 0)
            self.seqs[session.id] = session.history[-1].seq
            for one, next in itertools.pairwise(session.history):
                assert (one.phase, next.phase) in steps
                assert next.seq == one.seq + 1


TestSleepMachine = SleepMachine.TestCase
TestSleepMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
