"""What a reconciler does: one method per planned action, each repeatable after a crash at any point.

The intent is on record before each act (the session's phase says it), the result after. A driver's
refusal becomes the session's reason; the store's trouble is raised, and the next pass tries again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import structlog

from agentcube.errors import AgentCubeError, DriverFailed, StaleRevision, StoreFailed
from agentcube.manager.flight import Flight, Interrupted
from agentcube.manager.records import Records
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, SessionId, sandbox_id_for
from agentcube.model.lifecycle import LIVE, Phase, Trigger
from agentcube.model.plan import BeginDelete, BeginSuspend, Seen, plan
from agentcube.model.sandbox import Sandbox
from agentcube.model.session import Session
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
        self.on_forgotten: Callable[[Session], None] = lambda session: None
        """Told of every session that is gone for good."""

    async def launch(self, session: Session, flight: Flight) -> None:
        """Make the sandbox; the session becomes Running, or Failed with the driver's reason."""
        try:
            template = await self._records.store.get_template(session.template)
            spec = template.sandbox_spec(
                sandbox_id_for(session.id),
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
        except (StoreFailed, Interrupted):
            raise
        except AgentCubeError as exc:
            await self._discard(sandbox_id_for(session.id))
            await self.fail(session.id, exc.code, exc.detail)
            return

        def provisioned(now: Session) -> Session | None:
            if now.phase is not Phase.PENDING:
                return None
            # The template may have been put again since the session was accepted: it is what was started.
            current = replace(now, sandbox=sandbox, generation=template.generation, routes=template.routes)
            return current.advanced(Trigger.PROVISION)

        await self._records.change(session.id, provisioned)

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
            await self.fail(session.id, exc.code, exc.detail)
            return
        await self._records.change(
            session.id, lambda now: now.advanced(Trigger.ANSWER) if now.phase is Phase.RUNNING else None
        )

    async def begin_suspend(self, session: Session) -> None:
        """Store the wish to suspend, unless the newest record says otherwise."""

        def begin(now: Session) -> Session | None:
            todo = plan(now, Seen.UNKNOWN, now=self._clock.now(), can_suspend=True)
            return now.advanced(Trigger.SUSPEND, reason="idle") if isinstance(todo, BeginSuspend) else None

        await self._records.change(session.id, begin)

    async def suspend(self, session: Session, flight: Flight) -> None:
        """Suspend the sandbox, or revive the session when traffic came or the driver could not."""
        after = session.suspend_after
        if after is None or session.idle_s(self._clock.now()) < after.total_seconds():
            await self._revive(session.id, message="", again=True)
            return
        try:
            async with flight.starting(self._settings.start_timeout_s):
                asleep = await self._suspendable().suspend(_sandbox_of(session))
        except Interrupted:
            raise
        except AgentCubeError as exc:
            log.warning("suspend failed", session=session.id, error=exc.code, detail=exc.detail)
            await self._revive(session.id, message=f"could not be suspended: {exc.detail}", again=False)
            return

        def suspended(now: Session) -> Session | None:
            if now.phase is not Phase.PAUSING:
                return None
            return replace(now, sandbox=asleep).advanced(Trigger.SUSPENDED, reason="idle")

        await self._records.change(session.id, suspended)

    async def _revive(self, id: SessionId, *, message: str, again: bool) -> None:
        """Back to Ready; `again` False: it is not tried again, which would fail once a second."""

        def revived(now: Session) -> Session | None:
            if now.phase is not Phase.PAUSING:
                return None
            back = now if again else replace(now, suspend_after=None)
            return back.advanced(Trigger.REVIVE, message=message)

        await self._records.change(id, revived)

    async def resume(self, session: Session, flight: Flight) -> None:
        """Wake the sandbox; the session is Ready, or Paused again with the reason."""
        try:
            async with flight.starting(self._settings.start_timeout_s):
                awake = await self._suspendable().resume(_sandbox_of(session))
        except Interrupted:
            raise
        except AgentCubeError as exc:
            reason, message = exc.code, exc.detail
            await self._records.change(
                session.id,
                lambda now: (
                    now.advanced(Trigger.RESUME_FAILED, reason=reason, message=message)
                    if now.phase is Phase.RESUMING
                    else None
                ),
            )
            return

        def resumed(now: Session) -> Session | None:
            if now.phase is not Phase.RESUMING:
                return None
            return replace(now, sandbox=awake, last_activity_at=self._clock.now()).advanced(Trigger.RESUMED)

        await self._records.change(session.id, resumed)

    async def begin_delete(self, id: SessionId, reason: str) -> None:
        """Store that the session's time is up, unless the newest record says otherwise."""

        def begin(now: Session) -> Session | None:
            todo = plan(now, Seen.UNKNOWN, now=self._clock.now(), can_suspend=False)
            if not isinstance(todo, BeginDelete):
                return None
            log.info("session ends", session=id, reason=reason)
            return now.advanced(Trigger.DELETE, reason=reason)

        await self._records.change(id, begin)

    async def fail(self, id: SessionId, reason: str, message: str) -> None:
        """Store that the session failed and why; one that is ending already goes on ending."""

        def failed(now: Session) -> Session | None:
            return now.advanced(Trigger.FAIL, reason=reason, message=message) if now.phase in LIVE else None

        session = await self._records.change(id, failed)
        if session.phase is Phase.FAILED:
            log.warning("session failed", session=id, template=str(session.template), reason=reason)

    async def release(self, session: Session) -> bool:
        """Destroy a failed session's sandbox and take it off the record; False: try again later."""
        if not await self._discard(_sandbox_of(session).id):
            return False
        await self._records.change(
            session.id, lambda now: replace(now, sandbox=None) if now.phase is Phase.FAILED else None
        )
        return True

    async def destroy(self, session: Session) -> bool:
        """Destroy the sandbox, whole or half-made, and forget the session; False: try again later."""
        id = session.sandbox.id if session.sandbox else sandbox_id_for(session.id)
        if not await self._discard(id):
            return False
        try:
            await self._records.store.delete(session.id, revision=session.revision)
        except StaleRevision:
            return True  # changed meanwhile; the next look decides again
        self.on_forgotten(session)
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


def _sandbox_of(session: Session) -> Sandbox:
    assert session.sandbox is not None, session.phase
    return session.sandbox
