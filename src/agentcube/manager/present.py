"""Domain values as the wire shows them."""

from __future__ import annotations

from typing import Any

from agentcube.manager.pools import PoolReport
from agentcube.model.lifecycle import Phase
from agentcube.model.session import Session
from agentcube.model.template import Template
from agentcube.ports.driver import Usage
from agentcube.wire.bodies import (
    CompatCreated,
    EndpointsBody,
    EntryPoint,
    PoolBody,
    SandboxBody,
    SessionBody,
    UsageBody,
    WaitBody,
)
from agentcube.wire.names import API_VERSION, PLURALS


def session_body(
    session: Session, usage: Usage | None = None, *, stays_awake: str | None = None
) -> SessionBody:
    """A session as part B shows it; `stays_awake` is why its `suspend_after` has no effect."""
    kind, namespace, name = session.template
    base = f"/v1/sessions/{session.id}"
    box = session.sandbox
    return SessionBody(
        id=session.id,
        kind=kind.value,
        namespace=namespace,
        name=name,
        generation=session.generation,
        owner=session.owner,
        phase=session.phase.value,
        phase_since=session.phase_since,
        reason=session.reason,
        message=session.message,
        sleep=_tier(session),
        stays_awake=stays_awake,
        created_at=session.created_at,
        last_activity_at=session.last_activity_at,
        expires_at=session.expires_at,
        ttl=(session.expires_at - session.created_at).total_seconds(),
        idle_timeout=session.idle_timeout.total_seconds(),
        suspend_after=None if session.suspend_after is None else session.suspend_after.total_seconds(),
        from_pool=session.from_pool,
        state_lost=session.state_lost,
        metadata=dict(session.metadata),
        sandbox=None
        if box is None
        else SandboxBody(id=box.id, driver=box.driver, isolation=box.isolation.value, facts=dict(box.facts)),
        endpoints=EndpointsBody(
            invocations=f"/v1/namespaces/{namespace}/{PLURALS[kind.value]}/{name}/invocations/",
            execute=f"{base}/execute",
            files=f"{base}/files",
            logs=f"{base}/logs",
        ),
        usage=None
        if usage is None
        else UsageBody(
            memory_bytes=usage.memory_bytes,
            cpu_s=usage.cpu_s,
            pids=usage.pids,
            workspace_bytes=usage.workspace_bytes,
        ),
        revision=session.revision,
    )


def compat_created(session: Session, public_address: str) -> CompatCreated:
    """A Ready session as clients of the Go system read it."""
    assert session.sandbox is not None, session.phase
    prefixes = [route.path_prefix for route in session.routes] or ["/"]
    return CompatCreated(
        kind="SandboxClaim" if session.from_pool else "Sandbox",
        session_id=session.id,
        sandbox_id=session.sandbox.id,
        sandbox_name=session.sandbox.id,
        entry_points=[EntryPoint(path=prefix, endpoint=public_address) for prefix in prefixes],
        owner_id=session.owner,
    )


def manifest_of(template: Template) -> dict[str, Any]:
    """The manifest as it was put, with its generation."""
    metadata = {**template.manifest.get("metadata", {}), "generation": template.generation}
    return {"apiVersion": API_VERSION, **template.manifest, "metadata": metadata}


def pool_body(report: PoolReport) -> PoolBody:
    """A pool as part B shows it."""
    template = report.template
    return PoolBody(
        kind=template.key.kind.value,
        namespace=template.key.namespace,
        name=template.key.name,
        generation=template.generation,
        min=template.warm_pool.min,
        max=template.warm_pool.max,
        target=template.warm_pool.target,
        ready=report.ready,
        starting=report.starting,
        claims=report.claims,
        misses=report.misses,
        wait_ms=WaitBody(p50=_ms(report.wait_p50_s), p95=_ms(report.wait_p95_s)),
        last_error=report.last_error,
    )


def _tier(session: Session) -> str | None:
    if session.phase is not Phase.PAUSED or session.sandbox is None:
        return None
    return session.sandbox.facts.get("sleep", "suspended")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
