"""What a reconciler does: one method per planned action, each repeatable after a crash at any point.

The intent is on record before each act (the session's phase says it), the result after, if the session
is still ours then. A driver's refusal becomes the session's reason; the store's trouble is raised, and the
next pass tries again. Each raises Interrupted when something else is wanted, or another manager took over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta

import structlog

from agentcube.errors import (
    AgentCubeError,
    DriverFailed,
    SessionNotFound,
    StaleRevision,
    StartTimedOut,
    StoreFailed,
)
from agentcube.manager.flight import Flight, Interrupted
from agentcube.manager.orphans import started_for
from agentcube.manager.records import Edit, Records
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import LIVE, Phase, Trigger
from agentcube.model.plan import BeginDelete, BeginSuspend, Seen, plan
from agentcube.model.sandbox import Sandbox
from agentcube.model.session import IDLE_ENOUGH, SUSPEND_FAILED, WAKE_FAILED, Session
from agentcube.model.template import Template
from agentcube.ports.clock import Clock
from agentcube.ports.driver import SandboxDriver, Suspendable
from agentcube.ports.tokens import Signer

log = structlog.get_logger(__name__)


class Acts:
    """Acts on sandboxes for the reconciler, and puts the results on record."""

    def __init__(
        self, settings: ManagerSettings, records: Records, driver: SandboxDriver, signer: Signer, clock: Clock
    ) -> None:
        self._settings = settings
        self._records = records
        self._driver = driver
        self._signer = signer
        self._clock = clock
        self._starts = asyncio.Semaphore(settings.starts_in_flight)
        self._ends = asyncio.Semaphore(settings.ends_in_flight)
        self.on_forgetting: Callable[[Session], None] = lambda session: None
        """Told of every session, with its last record, that is about to be gone."""

    async def launch(self, session: Session, flight: Flight) -> None:
        """Make the sandbox; the session becomes Running, or Failed with the driver's reason.

        Earlier starts may go on somewhere: each makes a sandbox of its own, which nobody will want. This one's
        is destroyed only once the record says that nobody wants it: otherwise the next pass goes on with it, and
        what was asked here may yet be done then.
        """
        *before, own = started_for(session)
        for id in before:
            await self._discard(id)
        try:
            template = await self._records.store.get_template(session.template)
            spec = template.sandbox_spec(
                own,
                public_keys=self._signer.public_keys,
                env=session.env,
                resources=session.resources,
                labels={
                    "session": session.id,
                    "owner": session.owner,
                    "expires": session.expires_at.isoformat(),
                },
            )
            async with flight.starting(self._settings.start_timeout_s), self._starts:
                sandbox = await self._driver.create(spec)
            outcome = _provisioning(sandbox, template)
        except StoreFailed:
            raise
        except Interrupted:
            await self._discard_unwanted(session, own)
            raise
        except AgentCubeError as exc:
            outcome = _failing(exc.code, exc.detail)
        try:
            now = await self._records.finish(session.id, outcome)
        except (Interrupted, SessionNotFound):
            await self._discard_unwanted(session, own)
            raise
        if now.phase is Phase.FAILED:
            self._told(now)
            await self._discard(own)

    async def _discard_unwanted(self, session: Session, own: SandboxId) -> None:
        """Destroy what was started for `session` as it was read, if that is nobody's any more.

        It is the session's when a write that the store was not heard of again has landed since.
        """
        try:
            now = await self._records.store.get(session.id)
        except SessionNotFound:
            await self._discard(own)
            return
        has_it = now.sandbox is not None and now.sandbox.id == own
        if not has_it and (now.phase is not Phase.PENDING or now.attempt != session.attempt):
            await self._discard(own)  # whoever has the session now makes another

    async def bind(self, session: Session, flight: Flight) -> None:
        """Tie the sandbox to the session and wait until it answers; Ready, or Failed with the reason."""
        sandbox = _sandbox_of(session)
        token = self._signer.for_binding(session.id, sandbox.id)
        timeout_s = self._settings.start_timeout_s
        try:
            async with flight.starting(timeout_s):
                await self._driver.bind(sandbox, token, env=session.env)
                if session.routes:  # otherwise PicoD answers requests, and it has just answered the binding
                    await self._driver.ready(sandbox, timeout=timedelta(seconds=timeout_s))
        except Interrupted:
            raise
        except AgentCubeError as exc:
            await self._fail(session.id, exc)
            return
        # Relaxed: after a crash the session is Running, and is bound again, which PicoD takes as done.
        await self._records.finish(
            session.id,
            lambda now: now.advanced(Trigger.ANSWER) if now.phase is Phase.RUNNING else None,
            relaxed=True,
        )

    async def begin_suspend(self, session: Session) -> None:
        """Store the wish to suspend, unless the newest record says otherwise."""

        def begin(now: Session) -> Session | None:
            todo = plan(now, Seen.UNKNOWN, now=self._clock.now(), can_suspend=True)
            return (
                now.advanced(Trigger.SUSPEND, reason=IDLE_ENOUGH) if isinstance(todo, BeginSuspend) else None
            )

        await self._records.change(session.id, begin)

    async def suspend(self, session: Session, flight: Flight) -> None:
        """Suspend the sandbox: the session is Paused, or Ready with the reason when that could not be done.

        A session that is to be awake by the time this is done (a request came) is left to the next step.
        """
        try:
            async with self._sleeping(flight):
                asleep = await self._suspendable().suspend(_sandbox_of(session), fence=_fence(session))
        except AgentCubeError as exc:
            log.warning("suspend failed", session=session.id, error=exc.code, detail=exc.detail)
            await self.revive(session, flight, reason=SUSPEND_FAILED, message=exc.detail)
            return

        def suspended(now: Session) -> Session | None:
            if now.phase is not Phase.PAUSING:
                return None
            return replace(now, sandbox=asleep).advanced(Trigger.SUSPENDED, reason=now.reason)

        await self._records.finish(session.id, suspended)

    async def revive(self, session: Session, flight: Flight, *, reason: str = "", message: str = "") -> None:
        """Undo what there may be of a suspension, then Ready; Paused when it cannot be undone."""
        trigger = Trigger.REVIVE
        try:
            async with self._sleeping(flight):
                # The suspension's own call may come late, as it can outlive our waiting for it.
                fence = _fence(session, undoing=True)
                awake = await self._suspendable().resume(_sandbox_of(session), fence=fence)
        except AgentCubeError as exc:
            log.warning("suspension not undone", session=session.id, error=exc.code, detail=exc.detail)
            trigger, awake = Trigger.SUSPENDED, _sandbox_of(session)
            reason, message = WAKE_FAILED, exc.detail

        def revived(now: Session) -> Session | None:
            if now.phase is not Phase.PAUSING:
                return None
            return replace(now, sandbox=awake).advanced(trigger, reason=reason, message=message)

        await self._records.finish(session.id, revived)

    async def resume(self, session: Session, flight: Flight) -> None:
        """Wake the sandbox; the session is Ready, or Paused again with the reason."""
        try:
            async with self._sleeping(flight):
                awake = await self._suspendable().resume(_sandbox_of(session), fence=_fence(session))
        except AgentCubeError as exc:
            log.warning("wake failed", session=session.id, error=exc.code, detail=exc.detail)
            message = exc.detail
            await self._records.finish(
                session.id,
                lambda now: (
                    now.advanced(Trigger.RESUME_FAILED, reason=WAKE_FAILED, message=message)
                    if now.phase is Phase.RESUMING
                    else None
                ),
            )
            return

        def resumed(now: Session) -> Session | None:
            if now.phase is not Phase.RESUMING:
                return None
            used = replace(now, sandbox=awake, last_activity_at=self._clock.now())
            return used.advanced(Trigger.RESUMED, reason=now.reason)

        await self._records.finish(session.id, resumed)

    @contextlib.asynccontextmanager
    async def _sleeping(self, flight: Flight) -> AsyncIterator[None]:
        """A driver's suspend or resume, which may be interrupted. Raises DriverFailed at its deadline."""
        seconds = self._settings.sleep_timeout_s
        try:
            async with flight.starting(seconds):
                yield
        except StartTimedOut:
            raise DriverFailed(f"the driver was not done within {seconds:g} s") from None

    async def begin_delete(self, id: SessionId, reason: str) -> None:
        """Store that the session's time is up, unless the newest record says otherwise."""

        def begin(now: Session) -> Session | None:
            todo = plan(now, Seen.UNKNOWN, now=self._clock.now(), can_suspend=False)
            if not isinstance(todo, BeginDelete):
                return None
            log.info("session ends", session=id, reason=reason)
            return now.advanced(Trigger.DELETE, reason=reason)

        await self._records.change(id, begin)

    async def fail(self, session: Session, reason: str, message: str) -> None:
        """Store that the session failed and why: its sandbox, as it was seen, is no more.

        One that is ending already goes on ending, and one that has another sandbox by now goes on with it.
        """
        seen, failing = session.sandbox, _failing(reason, message)

        def failed(now: Session) -> Session | None:
            same = (now.sandbox and now.sandbox.id) == (seen and seen.id)
            return failing(now) if same else None

        self._told(await self._records.change(session.id, failed))

    async def _fail(self, id: SessionId, error: AgentCubeError) -> None:
        """The same for what an act of ours came to."""
        self._told(await self._records.finish(id, _failing(error.code, error.detail)))

    def _told(self, session: Session) -> None:
        if session.phase is Phase.FAILED:
            log.warning(
                "session failed", session=session.id, template=str(session.template), reason=session.reason
            )

    async def release(self, session: Session) -> bool:
        """Destroy a failed session's sandbox and take it off the record; False: try again later."""
        if not await self._discard(_sandbox_of(session).id):
            return False
        await self._records.finish(
            session.id, lambda now: replace(now, sandbox=None) if now.phase is Phase.FAILED else None
        )
        return True

    async def destroy(self, session: Session) -> bool:
        """Destroy the sandbox, whole or half-made, and forget the session; False: try again later."""
        for id in [session.sandbox.id] if session.sandbox else started_for(session):
            if not await self._discard(id):
                return False
        self.on_forgetting(session)
        try:
            await self._records.store.delete(session.id, revision=session.revision)
        except StaleRevision:
            return True  # changed meanwhile; the next look decides again
        log.info("session deleted", session=session.id, reason=session.reason)
        return True

    async def _discard(self, id: SandboxId) -> bool:
        try:
            async with self._ends:
                await self._driver.destroy(id)
        except AgentCubeError as exc:
            log.error("sandbox not destroyed", sandbox=id, error=exc.code, detail=exc.detail)
            return False
        return True

    def _suspendable(self) -> Suspendable:
        if not isinstance(self._driver, Suspendable):
            raise DriverFailed(f"driver {self._driver.name} cannot suspend")
        return self._driver


def _fence(session: Session, *, undoing: bool = False) -> int:
    """What tells a driver which of two calls is late: above those for older records.

    That which undoes a call lies between it and those for newer records, which another manager may write.
    """
    return 2 * session.revision + undoing


def _provisioning(sandbox: Sandbox, template: Template) -> Edit:
    # The template may have been put again since the session was accepted: it is what was started.
    return lambda now: (
        replace(now, sandbox=sandbox, generation=template.generation, routes=template.routes).advanced(
            Trigger.PROVISION
        )
        if now.phase is Phase.PENDING
        else None
    )


def _failing(reason: str, message: str) -> Edit:
    return lambda now: (
        now.advanced(Trigger.FAIL, reason=reason, message=message) if now.phase in LIVE else None
    )


def _sandbox_of(session: Session) -> Sandbox:
    assert session.sandbox is not None, session.phase
    return session.sandbox
