"""What must be true after every step, whatever fails; each is checked where it could become untrue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import LIVE, TRANSITIONS, Phase
from agentcube.model.pool import WarmState
from agentcube.model.session import WAKE_FAILED, Session
from agentcube.stores.tables import Change, DropSession, PutSession, PutWarm
from tests.simulation.errors import Rule, Violation
from tests.simulation.loop import SimLoop
from tests.simulation.machine import Machine
from tests.simulation.planes import Wall
from tests.simulation.store import SimTables

_STEPS = frozenset((before, after) for (before, _), after in TRANSITIONS.items())
_AWAKE = frozenset({Phase.PENDING, Phase.RUNNING, Phase.READY})
_RESULTS = frozenset(
    {
        (Phase.PENDING, Phase.RUNNING),
        (Phase.RUNNING, Phase.READY),
        (Phase.PAUSING, Phase.PAUSED),
        (Phase.PAUSING, Phase.READY),
        (Phase.RESUMING, Phase.READY),
        (Phase.RESUMING, Phase.PAUSED),
    }
)
"""Steps that say what came of an act."""
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
        self.sole = False
        """Whether there is one manager only, whose next life takes over at once what the last one held."""
        self.found: str | None = None
        """The first thing that was wrong."""
        self.broken: Rule | None = None
        """Which promise that was."""
        self._owners: dict[SandboxId, str] = {}
        self._bound: dict[str, SandboxId] = {}
        self._destroyed: set[SandboxId] = set()
        self.trace: list[str] | None = None
        tables.on_change = self.on_change
        machine.on_bound = self.on_bound
        machine.on_request = self.on_request
        machine.on_done = self.on_done
        machine.on_asleep = self.on_asleep
        machine.on_awake = self.on_awake
        machine.on_destroyed = self.on_destroyed

    def known(self, id: str) -> Known:
        """The session's facts, begun when it is first met."""
        facts = self.sessions.get(id)
        if facts is None:
            facts = self.sessions[id] = Known()
        return facts

    def disturb(self) -> None:
        """Something fails now for which idle times and deadlines need not hold."""
        self.disturbed_at = self._loop.time()

    def wrong(self, rule: Rule, text: str) -> Violation:
        """To be raised. It ends the run even where somebody catches it."""
        text = f"at {self._loop.time():.6f} s, in {self._loop.current}: {text} ({rule})"
        if self.found is None:
            self.found, self.broken = text, rule
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
                raise self.wrong(
                    Rule.OWNED, f"sandbox {change.entry.id} was session {owner}'s and is in the pool again"
                )

    def _put(self, session: Session) -> None:
        id, facts = session.id, self.known(session.id)
        before = self._tables.records.sessions.get(id)
        if self.trace is not None:
            box = session.sandbox.id if session.sandbox else "-"
            self.note(f"{id[:6]} r{session.revision} {session.phase} {session.reason} {box}")
        if before is None:
            self._inserted(session, facts)
        else:
            seen = self._tables.read_at
            if session.revision != before.revision + 1 or seen not in (None, before.revision):
                change = f"from revision {before.revision} to {session.revision}, by who had seen {seen}"
                raise self.wrong(Rule.REVISION, f"session {id} went {change}")
            self._held(session, before)
            if session.phase is not before.phase:
                if (before.phase, session.phase) not in _STEPS and not _again(before, session, facts):
                    raise self.wrong(Rule.PHASE, f"session {id} went from {before.phase} to {session.phase}")
                self._stepped(session, facts)
        now = self._clock.now()
        if session.due_at is None or session.due_at > now:
            facts.late_since = None
        elif facts.late_since is None:
            facts.late_since = now  # a client may shorten a life to what is over
        if session.sandbox is not None:
            self._holds(session, session.sandbox.id, before)

    def _held(self, session: Session, before: Session) -> None:
        """What another manager holds is its own until its lease is over, and so is what comes of its act."""
        hold, now, writer = before.hold, session.hold, self._tables.writer
        if hold is None:
            return
        if (before.phase, session.phase) in _RESULTS and writer != hold.owner:
            raise self.wrong(
                Rule.HELD, f"session {session.id}, which {hold.owner} holds, is {session.phase} by {writer}"
            )
        taken = session.phase is before.phase and now is not None and now.owner != hold.owner
        if taken and not self.sole and hold.until > self._clock.latest:
            raise self.wrong(
                Rule.HELD, f"session {session.id} is taken from {hold.owner} by {writer} before its time"
            )

    def _inserted(self, session: Session, facts: Known) -> None:
        if session.revision != 1:
            raise self.wrong(Rule.REVISION, f"session {session.id} begins at revision {session.revision}")
        if facts.last is not None:
            raise self.wrong(Rule.LIFE, f"session {session.id} was resurrected")

    def _holds(self, session: Session, sandbox: SandboxId, before: Session | None) -> None:
        if (before is None or before.sandbox is None) and sandbox in self._destroyed:
            raise self.wrong(Rule.DESTROYED, f"session {session.id} is given {sandbox}, which was destroyed")
        owner = self._owners.setdefault(sandbox, session.id)
        if owner != session.id:
            raise self.wrong(Rule.OWNED, f"sandbox {sandbox} is given to {session.id}, and was to {owner}")
        if before is not None and before.sandbox is not None and before.sandbox.id != sandbox:
            raise self.wrong(
                Rule.OWNED, f"session {session.id} had {before.sandbox.id} and now has {sandbox}"
            )
        if sandbox in self._tables.records.warm:
            raise self.wrong(Rule.OWNED, f"sandbox {sandbox} is session {session.id}'s and in the pool")

    def _stepped(self, session: Session, facts: Known) -> None:
        if session.phase is Phase.FAILED and session.reason == "sandbox_died" and session.sandbox is not None:
            box = self._machine.boxes.get(session.sandbox.id)
            if box is not None and box.whole and box.alive:
                raise self.wrong(Rule.DIED, f"session {session.id} is Failed, and its sandbox lives")
        if session.phase in (Phase.READY, Phase.PAUSED) and session.sandbox is not None:
            box = self._machine.boxes.get(session.sandbox.id)
            says = session.phase is Phase.PAUSED
            excused = says and session.reason == WAKE_FAILED
            if box is not None and box.alive and box.asleep is not says and not excused:
                stands = "stands still" if box.asleep else "goes on"
                raise self.wrong(
                    Rule.ASLEEP, f"session {session.id} is {session.phase}, and its sandbox {stands}"
                )
        if session.phase is Phase.DELETING:
            self._ending(session, facts)

    def _ending(self, session: Session, facts: Known) -> None:
        facts.over = True
        why, now = session.reason, self._clock.now()
        calm = not self.troubled() and self.disturbed_at < min(facts.used_at, self._loop.time()) - 3.0
        steady = self._loop.time() - self.disturbed_at > 3.0  # else the clock may have been set back just now
        if why == "ttl_expired" and steady and now < session.expires_at:
            raise self.wrong(
                Rule.REASON, f"session {session.id} ends {session.expires_at - now} before its time"
            )
        if why == "deleted" and not facts.unwanted:
            raise self.wrong(Rule.REASON, f"session {session.id} is deleted and nobody asked for it")
        if why in _UNANSWERED and facts.given and not facts.unwanted:
            raise self.wrong(Rule.REASON, f"session {session.id} is {why}, and a client has it")
        if why == "idle_timeout" and calm:
            if facts.using:
                raise self.wrong(
                    Rule.REASON, f"session {session.id} is idle, and its sandbox works for a client"
                )
            if facts.safe_until is not None and now < facts.safe_until:
                raise self.wrong(
                    Rule.REASON, f"session {session.id} is idle {facts.safe_until - now} before it may be"
                )

    def _drop(self, id: SessionId) -> None:
        session = self._tables.records.sessions.get(id)
        if session is None:
            return
        facts = self.known(id)
        if self.trace is not None:
            self.note(f"{id[:6]} dropped")
        if session.phase is not Phase.DELETING:
            raise self.wrong(Rule.LIFE, f"session {id} was lost: it was {session.phase}")
        if session.sandbox is not None and session.sandbox.id in self._machine.boxes:
            raise self.wrong(
                Rule.FORGOTTEN, f"session {id} is forgotten, and its sandbox {session.sandbox.id} is not"
            )
        facts.last = session

    # What sandboxes see

    def on_bound(self, sandbox: SandboxId, session: str) -> None:
        """A driver tied the sandbox to the session."""
        owner = self._owners.get(sandbox, session)
        if owner != session:
            raise self.wrong(Rule.OWNED, f"sandbox {sandbox} is tied to {session}, and is {owner}'s")
        other = self._bound.get(session)
        if other not in (None, sandbox) and other in self._machine.boxes:
            raise self.wrong(Rule.OWNED, f"session {session} has two sandboxes, {other} and {sandbox}")
        self._bound[session] = sandbox

    def _user(self, sandbox: SandboxId) -> Session | None:
        """The session that has the sandbox, as its record says."""
        return self.record(self._tables.records.bound.get(sandbox, ""))

    def on_destroyed(self, sandbox: SandboxId) -> None:
        """A driver destroyed the sandbox, if it was there."""
        if self.trace is not None:
            self.note(f"{sandbox} destroyed")
        self._destroyed.add(sandbox)
        user, entry = self._user(sandbox), self._tables.records.warm.get(sandbox)
        if user is not None and user.phase in LIVE:
            raise self.wrong(
                Rule.DESTROYED, f"sandbox {sandbox} is destroyed, and its session {user.id} is {user.phase}"
            )
        if entry is not None and entry.state is WarmState.READY:
            raise self.wrong(
                Rule.DESTROYED, f"sandbox {sandbox} is destroyed, and waits in the pool for a session"
            )

    def on_asleep(self, sandbox: SandboxId) -> None:
        """A driver made the sandbox stand still."""
        if self.trace is not None:
            self.note(f"{sandbox} asleep")
        user = self._user(sandbox)
        if user is not None and user.phase in _AWAKE:
            raise self.wrong(
                Rule.ASLEEP, f"sandbox {sandbox} stands still, and its session {user.id} is {user.phase}"
            )
        if sandbox in self._tables.records.warm:
            raise self.wrong(Rule.ASLEEP, f"sandbox {sandbox} stands still, and is in the pool")

    def on_awake(self, sandbox: SandboxId) -> None:
        """A driver let the sandbox go on."""
        if self.trace is not None:
            self.note(f"{sandbox} awake")
        user = self._user(sandbox)
        if user is not None and user.phase is Phase.PAUSED and user.reason != WAKE_FAILED:
            raise self.wrong(Rule.ASLEEP, f"sandbox {sandbox} goes on, and its session {user.id} is Paused")

    def on_request(self, sandbox: SandboxId, session: str, bound: str | None) -> None:
        """A Router's request reached a sandbox."""
        if bound != session:
            raise self.wrong(
                Rule.STATE, f"a request for session {session} reached {sandbox}, which is {bound}'s"
            )
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
            raise self.wrong(
                Rule.TOLD, f"a client heard that session {id} is absent, and it is {record.phase}"
            )

    def told_failed(self, id: str) -> None:
        """A client heard that the session failed."""
        record = self.record(id)
        if record is not None and record.phase in LIVE:
            raise self.wrong(Rule.TOLD, f"a client heard that session {id} failed, and it is {record.phase}")

    def served(self, id: str, sandbox: str, count: int, before: int) -> None:
        """A client got the answer number `count`; the last it had before it asked was `before`."""
        facts = self.known(id)
        if facts.sandbox is None:
            facts.sandbox = SandboxId(sandbox)
        if facts.sandbox != sandbox or count <= before:
            raise self.wrong(
                Rule.STATE,
                f"session {id} lost its state: {facts.sandbox} at {before}, then {sandbox} at {count}",
            )

    # What must have happened by now

    def overdue(self, bound: timedelta) -> None:
        """Nothing waits for longer than `bound` after its deadline, or in a phase that only passes."""
        now = self._clock.now()
        for session in self._tables.records.sessions.values():
            due = self.known(session.id).late_since or session.due_at
            waits = session.phase is not Phase.DELETING  # whose deadline is in the past on purpose
            if waits and due is not None and due < now - bound:
                raise self.wrong(
                    Rule.DUE, f"session {session.id} ({session.phase}) is overdue by {now - due}"
                )
            passing = session.phase not in (Phase.READY, Phase.PAUSED, Phase.FAILED)
            if passing and session.phase_since < now - bound:
                raise self.wrong(
                    Rule.DUE, f"session {session.id} is {session.phase} since {now - session.phase_since}"
                )

    def note(self, text: str) -> None:
        """A line of the trace."""
        if self.trace is not None:
            self.trace.append(f"{self._loop.time():11.6f} {self._loop.current!r:10} {text}")
