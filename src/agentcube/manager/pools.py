"""Warm pools: keeps as many ready sandboxes per template as it asks for, behind the back of claims.

A claim is one step in the store and knows nothing of this. What is started, kept and drained is
decided by `model.pool.plan_pool`; an entry is on record before its sandbox is made. Of several managers the
keeper fills; what one that was it before is still starting finds its entry gone, and is destroyed by it.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict, deque
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from datetime import timedelta

import structlog

from agentcube.errors import AgentCubeError, StartTimedOut, StoreFailed
from agentcube.manager.keeper import Keeper
from agentcube.manager.settings import ManagerSettings
from agentcube.model.ids import SandboxId, new_sandbox_id
from agentcube.model.plan import Seen
from agentcube.model.pool import WarmSandbox, WarmState, plan_pool
from agentcube.model.template import Template, TemplateKey
from agentcube.ports.clock import Clock
from agentcube.ports.driver import SandboxDriver
from agentcube.ports.store import Store
from agentcube.ports.tokens import Signer

log = structlog.get_logger(__name__)

_WAITS_KEPT = 512  # of the latest creations per template, for percentiles
_BACKOFF_FIRST_S = 0.5
_CLOSING_S = 0.02  # between two looks at whether the drain is done: destroying one takes a few ms


@dataclass(slots=True)
class _Record:
    """What is remembered of one template's pool between passes; lost with the process."""

    generation: int = 0
    claims: int = 0
    misses: int = 0
    waits_s: deque[float] = field(default_factory=lambda: deque(maxlen=_WAITS_KEPT))
    failures: int = 0
    not_before: float = 0.0
    last_error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """A pool as it stands. Waits are seconds from request to Ready, of the latest creations."""

    template: Template
    ready: int
    starting: int
    claims: int
    misses: int
    wait_p50_s: float | None
    wait_p95_s: float | None
    last_error: str | None


class Pools:
    """Refills, rolls and drains inside `run`; `wake` asks for a pass now."""

    def __init__(
        self,
        settings: ManagerSettings,
        store: Store,
        driver: SandboxDriver,
        signer: Signer,
        clock: Clock,
        keeper: Keeper,
    ) -> None:
        self._settings = settings
        self._store = store
        self._driver = driver
        self._signer = signer
        self._clock = clock
        self._keeper = keeper
        self._records: defaultdict[TemplateKey, _Record] = defaultdict(_Record)
        self._starting: dict[SandboxId, asyncio.Task[None]] = {}
        self._doomed: dict[SandboxId, asyncio.Task[None] | None] = {}
        self._reported: set[SandboxId] = set()
        self._wake = asyncio.Event()
        self._closing = False
        self._running = False
        self._failing = False  # the last pass ended early, for the store's sake

    def wake(self) -> None:
        """Something changed (a claim, a template): look at the pools soon."""
        self._wake.set()

    def doom(self, id: SandboxId) -> None:
        """A sandbox that nobody has and that could not be destroyed: tried again with each pass."""
        self._doomed.setdefault(id, None)

    def note(self, template: TemplateKey, *, claimed: bool) -> None:
        """A session was asked for, and came from the pool or did not."""
        record = self._records[template]
        if claimed:
            record.claims += 1
        else:
            record.misses += 1

    def note_wait(self, template: TemplateKey, seconds: float) -> None:
        """A session of the template was Ready that long after it was asked for."""
        self._records[template].waits_s.append(seconds)

    async def run(self) -> None:
        """Keep the pools until cancelled. Starts under way are given up then; the next start tidies up."""
        self._closing, self._running = False, True
        try:
            async with asyncio.TaskGroup() as group:
                if self._settings.replicated:
                    group.create_task(self._hear(), name="news of pools")
                await self._keep(group)
        finally:
            self._running = False

    async def _hear(self) -> None:
        """Look soon after another manager's claim, or change of a template."""
        async for _ in self._store.pool_changes():
            self.wake()

    async def _keep(self, group: asyncio.TaskGroup) -> None:
        while True:
            self._wake.clear()
            try:
                await self.sweep(group)
                self._failing = False
            except AgentCubeError as exc:
                if not self._failing:
                    log.warning("pools wait for the store", error=exc.code, detail=exc.detail)
                self._failing = True
            try:
                async with asyncio.timeout(self._settings.observe_s):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def close(self) -> None:
        """Drain every pool and refill none, for a clean stop.

        Returns when all is destroyed, when `run` ended, or when the store takes nothing more: what is
        left then is the next start's.
        """
        self._closing, self._failing = True, False
        while (
            self._running
            and not self._failing
            and (self._doomed or self._starting or await self._store.list_warm())
        ):
            self.wake()
            await asyncio.sleep(_CLOSING_S)

    async def report(self) -> list[PoolReport]:
        """The pools of all templates that have or had one, by template. Raises StoreFailed."""
        entries = _by_template(await self._store.list_warm())
        reports = []
        for template in await self._store.list_templates():
            record, own = self._records.get(template.key, _Record()), entries.get(template.key, [])
            if not (template.warm_pool.target or own):
                continue
            ready = sum(e.state is WarmState.READY and e.generation == template.generation for e in own)
            reports.append(
                PoolReport(
                    template=template,
                    ready=ready,
                    starting=sum(e.state is WarmState.STARTING for e in own),
                    claims=record.claims,
                    misses=record.misses,
                    wait_p50_s=_percentile(record.waits_s, 0.50),
                    wait_p95_s=_percentile(record.waits_s, 0.95),
                    last_error=record.last_error,
                )
            )
        return reports

    async def sweep(self, group: asyncio.TaskGroup) -> None:
        """One pass over all pools: whatever has to be made or destroyed is begun in `group`."""
        for id in [id for id, task in self._doomed.items() if task is None]:
            self._destroy(id, group)
        if not self._keeper.keeping:
            return
        templates = {t.key: t for t in await self._store.list_templates()}
        starting = frozenset(self._starting)  # before the entries: one that is ready by then says so
        entries = _by_template(await self._store.list_warm())
        for key in self._records.keys() - templates.keys():
            del self._records[key]
        for key in templates.keys() | entries.keys():
            alive = [e for e in entries.get(key, []) if await self._is_sound(e, starting, group)]
            template = None if self._closing else templates.get(key)
            await self._level(key, template, alive, group)

    async def _is_sound(self, entry: WarmSandbox, starting: Set[SandboxId], group: asyncio.TaskGroup) -> bool:
        """Whether the entry is what it says; one that is not is taken out and destroyed."""
        if entry.sandbox is None:
            sound = entry.id in starting
        else:
            try:
                sound = await self._driver.observe(entry.sandbox) is not Seen.GONE
            except AgentCubeError:
                sound = True  # it cannot be told: never taken for gone
        if not sound:
            log.warning("warm sandbox lost", sandbox=entry.id, template=str(entry.template))
            await self._drain(entry.id, group)
        return sound

    async def _level(
        self,
        key: TemplateKey,
        template: Template | None,
        entries: Sequence[WarmSandbox],
        group: asyncio.TaskGroup,
    ) -> None:
        own = sum(e.state is WarmState.STARTING for e in entries)
        others = max(0, len(self._starting) - own)
        todo = plan_pool(template, entries, in_flight_max=self._settings.refills_in_flight - others)
        for id in todo.drain:
            await self._drain(id, group)
        if template is None:
            return
        record = self._records[key]
        if record.generation != template.generation:  # what failed before may have been put right
            record.generation, record.failures, record.not_before = template.generation, 0, 0.0
            record.last_error = None
        if asyncio.get_running_loop().time() < record.not_before:
            return
        for _ in range(todo.start):
            await self._begin(template, group)

    async def _begin(self, template: Template, group: asyncio.TaskGroup) -> None:
        entry = WarmSandbox(
            id=new_sandbox_id(),
            template=template.key,
            generation=template.generation,
            state=WarmState.STARTING,
            created_at=self._clock.now(),
        )
        await self._store.put_warm(entry)
        starting = group.create_task(self._start(entry, template, group))
        self._starting[entry.id] = starting
        # Not by the task itself: one that is given up before its first step runs none of its code.
        starting.add_done_callback(lambda _: self._start_is_over(entry.id))

    def _start_is_over(self, id: SandboxId) -> None:
        del self._starting[id]
        self.wake()

    async def _start(self, entry: WarmSandbox, template: Template, group: asyncio.TaskGroup) -> None:
        timeout_s = self._settings.start_timeout_s
        record = self._records[template.key]
        try:
            labels = {"pool": str(template.key)}
            spec = template.sandbox_spec(entry.id, public_keys=self._signer.public_keys, labels=labels)
            spec = replace(spec, patient=True)
            async with asyncio.timeout(timeout_s):
                sandbox = await self._driver.create(spec)
                if template.routes:
                    await self._driver.ready(sandbox, timeout=timedelta(seconds=timeout_s))
            await self._publish(replace(entry, state=WarmState.READY, sandbox=sandbox), group)
            record.failures, record.last_error = 0, None
        except (AgentCubeError, TimeoutError) as exc:
            error = exc if isinstance(exc, AgentCubeError) else StartTimedOut(f"not ready in {timeout_s:g} s")
            self._failed(template.key, record, error)
            await self._give_up(entry.id, group)
        except Exception:  # a task's top: one template's trouble must not end the other pools
            log.exception("refill failed", template=str(template.key))
            self._failed(template.key, record, AgentCubeError("the refill failed; see the server's log"))
            await self._give_up(entry.id, group)

    async def _publish(self, entry: WarmSandbox, group: asyncio.TaskGroup) -> None:
        """Let the sandbox be claimed, or destroy it when nobody can have claimed it."""
        try:
            if not await self._store.update_warm(entry):
                self._destroy(entry.id, group)  # another keeper took it for left behind
        except StoreFailed as exc:
            # Only the answer may be lost: then it is the pool's, or a session's by now. What it is not, the next
            # pass finds.
            log.warning("pool entry left for the next pass", sandbox=entry.id, error=exc.code)

    def _failed(self, key: TemplateKey, record: _Record, error: AgentCubeError) -> None:
        if record.failures == 0:  # once per streak; the rest is counted
            log.warning("refill failed", template=str(key), error=error.code, detail=error.detail)
        pause_s = min(_BACKOFF_FIRST_S * 2.0**record.failures, self._settings.refill_backoff_max_s)
        record.failures = min(record.failures + 1, 32)
        record.not_before = asyncio.get_running_loop().time() + pause_s
        record.last_error = error.detail

    async def _give_up(self, id: SandboxId, group: asyncio.TaskGroup) -> None:
        try:
            await self._store.remove_warm(id)
        except AgentCubeError as exc:
            log.warning("pool entry left for the next pass", sandbox=id, error=exc.code)
        self._destroy(id, group)

    async def _drain(self, id: SandboxId, group: asyncio.TaskGroup) -> None:
        """Take an entry out and destroy its sandbox; one that a session just claimed is left alone."""
        starting = self._starting.get(id)
        if starting is not None:
            starting.cancel()
            await asyncio.wait({starting})
        if await self._store.remove_warm(id):
            self._destroy(id, group)

    def _destroy(self, id: SandboxId, group: asyncio.TaskGroup) -> None:
        self._doomed[id] = group.create_task(self._destroying(id))

    async def _destroying(self, id: SandboxId) -> None:
        """Destroy; on failure the id stays doomed, and each pass tries again."""
        try:
            await self._driver.destroy(id)
        except AgentCubeError as exc:
            if id not in self._reported:
                log.error("sandbox not destroyed", sandbox=id, error=exc.code, detail=exc.detail)
                self._reported.add(id)
            self._doomed[id] = None
        else:
            del self._doomed[id]
            self._reported.discard(id)


def _by_template(entries: Sequence[WarmSandbox]) -> dict[TemplateKey, list[WarmSandbox]]:
    grouped: defaultdict[TemplateKey, list[WarmSandbox]] = defaultdict(list)
    for entry in entries:
        grouped[entry.template].append(entry)
    return dict(grouped)


def _percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` of all do not exceed; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1]
