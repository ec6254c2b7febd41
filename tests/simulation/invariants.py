"""What must be true after every step, whatever fails; each is checked where it could become untrue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import LIVE, TRANSITIONS, Phase
from agentcube.model.session import Session
from agentcube.stores.tables import Change, DropSession, PutSession, PutWarm
from tests.simulation.errors import Violation
from tests.simulation.loop import SimLoop
from tests.simulation.machine import Machine
from tests.simulation.planes import Wall
from tests.simulation.store import SimTables

_STEPS = frozenset((before, after) for (before, _), after in TRANSITIONS.items())
_UNANSWERED = frozenset({"abandoned", "start_timed_out"})
"""Reasons for the end of a session that no client has been given."""


@dataclass(slots=True)
class Known:
    """What the world knows of one session, beside its record."""

    sandbox: SandboxId | None = None
    given: bool = False  # a client was told that it is there
    unwanted: bool = False  # a client asked for its end, or was not there to get it
    over: bool = False  # it is to be gone, or is
    using: int = 0  # requests that its sandbox works on, and that came in time
    used_at: float = 0.0  # loop time of the last use
    late_since: datetime | None = None  # its deadline was in the past already when it was written
    safe_until: datetime | None = None  # it is not idle before; what comes later comes too late
    last: Session | None = None  # the record with which it was forgotten


def _again(before: Session, now: Session, facts: Known) -> bool:
    """One whose warm sandbox was no good begins again, before anybody knows it."""
    failed = before.phase is Phase.FAILED and before.from_pool and before.sandbox is None
    return failed and now.phase is Phase.PENDING and not facts.given


class Checker:
    """Raises Violation. `disturb` tells it of faults after which activity may be lost, or time be wrong."""

    def __init__(self, loop: SimLoop, tables: SimTables, machine: Machine, clock: Wall) -> None:
        self._loop = loop
        self._tables = tables
        self._machine = machine
        self._clock = clock
        self.sessions: dict[str, Known] = {}
        self.disturbed_at = -1e9
        self.troubled: Callable[[], bool] = lambda: False
        """Whether something fails at this moment."""
        self.found: str | None = None
        """The first thing that was wrong."""
        self._owners: dict[SandboxId, str] = {}
        self._bound: dict[str, SandboxId] = {}
        self.trace: list[str] | None = None
        tables.on_change = self.on_change
        machine.on_bound = self.on_bound
        machine.on_request = self.on_request
        machine.on_done = self.on_done
        machine.on_asleep = self.on_asleep

    def known(self, id: str) -> Known:
        """The session's facts, begun when it is first met."""
        facts = self.sessions.get(id)
        if facts is None:
            facts = self.sessions[id] = Known()
        return facts

    def disturb(self) -> None:
        """Something fails now for which idle times and deadlines need not hold."""
        self.disturbed_at = self._loop.time()

    def wrong(self, text: str) -> Violation:
        """To be raised. It ends the run even where somebody catches it."""
        text = f"at {self._loop.time():.6f} s, in {self._loop.current}: {text}"
        self.found = self.found or text
        self._loop.stop()
        return Violation(text)

    # What becomes of records

    def on_change(self, change: Change) -> None:
        """The store is about to make this true."""
        if isinstance(change, PutSession):
            self._put(change.session)
        elif isinstance(change, DropSession):
            self._drop(change.id)
        elif isinstance(change, PutWarm):
            owner = self._owners.get(change.entry.id)
            if owner is not None:
                raise self.wrong(f"sandbox {change.entry.id} was session {owner}'s and is in the pool again")

    def _put(self, session: Session) -> None:
        id, facts = session.id, self.known(session.id)
        before = self._tables.records.sessions.get(id)
        if self.trace is not None:
            box = session.sandbox.id if session.sandbox else "-"
            self.note(f"{id[:6]} r{session.revision} {session.phase} {session.reason} {box}")
        if before is None:
            self._inserted(session, facts)
        else:
            if session.revision != before.revision + 1:
                raise self.wrong(f"session {id} went from revision {before.revision} to {session.revision}")
            if session.phase is not before.phase:
                if (before.phase, session.phase) not in _STEPS and not _again(before, session, facts):
                    raise self.wrong(f"session {id} went from {before.phase} to {session.phase}")
                self._stepped(session, facts)
        now = self._clock.now()
        if session.due_at is None or session.due_at > now:
            facts.late_since = None
        elif facts.late_since is None:
            facts.late_since = now  # a client may shorten a life to what is over
        if session.sandbox is not None:
            self._holds(session, session.sandbox.id, before)

    def _inserted(self, session: Session, facts: Known) -> None:
        if session.revision != 1:
            raise self.wrong(f"session {session.id} begins at revision {session.revision}")
        if facts.last is not None:
            raise self.wrong(f"session {session.id} was resurrected")

    def _holds(self, session: Session, sandbox: SandboxId, before: Session | None) -> None:
        owner = self._owners.setdefault(sandbox, session.id)
        if owner != session.id:
            raise self.wrong(f"sandbox {sandbox} is given to {session.id}, and was to {owner}")
        if before is not None and before.sandbox is not None and before.sandbox.id != sandbox:
            raise self.wrong(f"session {session.id} had {before.sandbox.id} and now has {sandbox}")
        if sandbox in self._tables.records.warm:
            raise self.wrong(f"sandbox {sandbox} is session {session.id}'s and in the pool")

    def _stepped(self, session: Session, facts: Known) -> None:
        if session.phase is Phase.FAILED and session.reason == "sandbox_died" and session.sandbox is not None:
            box = self._machine.boxes.get(session.sandbox.id)
            if box is not None and box.whole and box.alive:
                raise self.wrong(f"session {session.id} is Failed, and its sandbox lives")
        if session.phase is Phase.READY and session.sandbox is not None:
            box = self._machine.boxes.get(session.sandbox.id)
            if box is not None and box.asleep:
                raise self.wrong(f"session {session.id} is Ready, and its sandbox stands still")
        if session.phase is Phase.DELETING:
            self._ending(session, facts)

    def _ending(self, session: Session, facts: Known) -> None:
        facts.over = True
        why, now = session.reason, self._clock.now()
        calm = not self.troubled() and self.disturbed_at < min(facts.used_at, self._loop.time()) - 3.0
        steady = self._loop.time() - self.disturbed_at > 3.0  # else the clock may have been set back just now
        if why == "ttl_expired" and steady and now < session.expires_at:
            raise self.wrong(f"session {session.id} ends {session.expires_at - now} before its time")
        if why == "deleted" and not facts.unwanted:
            raise self.wrong(f"session {session.id} is deleted and nobody asked for it")
        if why in _UNANSWERED and facts.given and not facts.unwanted:
            raise self.wrong(f"session {session.id} is {why}, and a client has it")
        if why == "idle_timeout" and calm:
            if facts.using:
                raise self.wrong(f"session {session.id} is idle, and its sandbox works for a client")
            if facts.safe_until is not None and now < facts.safe_until:
                raise self.wrong(f"session {session.id} is idle {facts.safe_until - now} before it may be")

    def _drop(self, id: SessionId) -> None:
        session = self._tables.records.sessions.get(id)
        if session is None:
            return
        facts = self.known(id)
        if self.trace is not None:
            self.note(f"{id[:6]} dropped")
        if session.phase is not Phase.DELETING:
            raise self.wrong(f"session {id} was lost: it was {session.phase}")
        if session.sandbox is not None and session.sandbox.id in self._machine.boxes:
            raise self.wrong(f"session {id} is forgotten, and its sandbox {session.sandbox.id} is not")
        facts.last = session

    # What sandboxes see

    def on_bound(self, sandbox: SandboxId, session: str) -> None:
        """A driver tied the sandbox to the session."""
        other = self._bound.get(session)
        if other not in (None, sandbox) and other in self._machine.boxes:
            raise self.wrong(f"session {session} has two sandboxes, {other} and {sandbox}")
        self._bound[session] = sandbox

    def on_asleep(self, sandbox: SandboxId, session: str | None) -> None:
        """A driver made the sandbox stand still."""
        record = self.record(session or "")
        if record is not None and record.phase is Phase.READY:
            raise self.wrong(f"sandbox {sandbox} stands still, and its session {session} is Ready")

    def on_request(self, sandbox: SandboxId, session: str, bound: str | None) -> None:
        """A Router's request reached a sandbox."""
        if bound != session:
            raise self.wrong(f"a request for session {session} reached {sandbox}, which is {bound}'s")
        if self.trace is not None:
            self.note(f"{session[:6]} request in {sandbox}")
        facts, now = self.known(session), self._clock.now()
        record = self.record(session)
        if facts.safe_until is None and record is not None:
            facts.safe_until = record.created_at + record.idle_timeout
        if facts.safe_until is not None and now <= facts.safe_until:
            facts.using += 1
            self._used(session, facts, now)

    def on_done(self, session: str) -> None:
        """The sandbox is through with it, or the connection is gone."""
        if self.trace is not None:
            self.note(f"{session[:6]} request done")
        facts = self.known(session)
        if facts.using:
            facts.using -= 1
            self._used(session, facts, self._clock.now())

    def _used(self, session: str, facts: Known, now: datetime) -> None:
        record = self.record(session)
        if record is not None:
            facts.used_at, facts.safe_until = self._loop.time(), now + record.idle_timeout

    # What clients see

    def record(self, id: str) -> Session | None:
        """The session as the store has it."""
        found: Session | None = self._tables.records.sessions.get(SessionId(id))
        return found

    def told_absent(self, id: str) -> None:
        """A client heard that the session is not there."""
        record = self.record(id)
        if record is not None and record.phase in LIVE:
            raise self.wrong(f"a client heard that session {id} is absent, and it is {record.phase}")

    def told_failed(self, id: str) -> None:
        """A client heard that the session failed."""
        record = self.record(id)
        if record is not None and record.phase in LIVE:
            raise self.wrong(f"a client heard that session {id} failed, and it is {record.phase}")

    def served(self, id: str, sandbox: str, count: int, before: int) -> None:
        """A client got the answer number `count`; the last it had before it asked was `before`."""
        facts = self.known(id)
        if facts.sandbox is None:
            facts.sandbox = SandboxId(sandbox)
        if facts.sandbox != sandbox or count <= before:
            raise self.wrong(
                f"session {id} lost its state: {facts.sandbox} at {before}, then {sandbox} at {count}"
            )

    # What must have happened by now

    def overdue(self, bound: timedelta) -> None:
        """Nothing waits for longer than `bound` after its deadline, or in a phase that only passes."""
        now = self._clock.now()
        for session in self._tables.records.sessions.values():
            due = self.known(session.id).late_since or session.due_at
            waits = session.phase is not Phase.DELETING  # whose deadline is in the past on purpose
            if waits and due is not None and due < now - bound:
                raise self.wrong(f"session {session.id} ({session.phase}) is overdue by {now - due}")
            passing = session.phase not in (Phase.READY, Phase.PAUSED, Phase.FAILED)
            if passing and session.phase_since < now - bound:
                raise self.wrong(f"session {session.id} is {session.phase} since {now - session.phase_since}")

    def note(self, text: str) -> None:
        """A line of the trace."""
        if self.trace is not None:
            self.trace.append(f"{self._loop.time():11.6f} {self._loop.current!r:10} {text}")


def leaks(world: Any) -> list[str]:
    """What is left once every session and every template is gone."""
    left = []
    if world.machine.boxes:
        left.append(f"sandboxes {list(world.machine.boxes)}")
    if world.tables.records.sessions or world.tables.records.warm:
        left.append(f"records {list(world.tables.records.sessions)} {list(world.tables.records.warm)}")
    for one in world.managers.alive:
        counts = {
            "flights": one.manager._reconciler.flights,
            "creating": one.manager._admission._creating,
            "starting": len(one.manager._pools._starting),
            "doomed": len(one.manager._pools._doomed),
        }
        left += [f"{one.process}: {count} {name}" for name, count in counts.items() if count]
    for router in world.routers:
        engine = router.engine
        counts = {
            "in flight": engine.in_flight,
            "waiting": engine.waiting,
            "clients": len(engine.clients),
            "held bytes": engine.held_bytes,
            "shares": len(engine.limits),
            "wakes": len(engine.wakes._flights._flying),
            "rousing": len(engine.wakes._rousing),
            "suspicions": len(engine.suspicions._flying),
            "tasks": len(engine._tasks),
            "idle connections": engine.pools.idle,
        }
        left += [f"{router.process}: {count} {name}" for name, count in counts.items() if count]
    return left
