"""Warm pools: sandboxes that nobody owns yet, and how many there should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from agentcube.model.ids import SandboxId
from agentcube.model.sandbox import Sandbox
from agentcube.model.template import Template, TemplateKey


class WarmState(StrEnum):
    """A pool entry's state. The intent (`starting`) is stored before the driver is asked."""

    STARTING = "starting"
    READY = "ready"


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmSandbox:
    """One pool entry. `sandbox` is None while it starts."""

    id: SandboxId
    template: TemplateKey
    generation: int
    state: WarmState
    created_at: datetime
    sandbox: Sandbox | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolPlan:
    """What one pass should do: start `start` more, destroy `drain`."""

    start: int
    drain: tuple[SandboxId, ...]


def plan_pool(template: Template | None, entries: Sequence[WarmSandbox], *, in_flight_max: int) -> PoolPlan:
    """How to bring a template's pool to its target.

    Entries of another generation, and all entries of a template that is gone, are drained; so are
    the oldest ready ones above the target. At most `in_flight_max` may be starting at once, so that
    a refill never starves the sessions that run.
    """
    if template is None:
        return PoolPlan(start=0, drain=tuple(e.id for e in entries))
    stale = [e.id for e in entries if e.generation != template.generation]
    current = sorted((e for e in entries if e.generation == template.generation), key=lambda e: e.created_at)
    target = template.warm_pool.target
    ready = [e for e in current if e.state is WarmState.READY]
    surplus = [e.id for e in ready[: max(0, len(current) - target)]]
    starting = len(current) - len(ready)
    wanted = max(0, target - len(current))
    return PoolPlan(start=min(wanted, max(0, in_flight_max - starting)), drain=(*stale, *surplus))
