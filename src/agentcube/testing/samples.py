"""Valid domain values with defaults, so that a test spells out only what it is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agentcube.model.ids import SandboxId, SessionId, new_sandbox_id, new_session_id
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.sandbox import Endpoint, Isolation, Sandbox
from agentcube.model.session import Session
from agentcube.model.template import Kind, Template, TemplateKey

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEY = TemplateKey(Kind.CODE_INTERPRETER, "default", "my-interpreter")


def sample_session(id: str = "", **fields: Any) -> Session:
    """A Pending session of `KEY`, made at `NOW`, with its deadline set unless `due_at` is given."""
    values: dict[str, Any] = {
        "template": KEY,
        "generation": 1,
        "owner": "ada",
        "phase": Phase.PENDING,
        "created_at": NOW,
        "last_activity_at": fields.get("created_at", NOW),
        "expires_at": fields.get("created_at", NOW) + timedelta(hours=8),
        "idle_timeout": timedelta(minutes=15),
    }
    session = Session(id=SessionId(id) if id else new_session_id(), **(values | fields))
    return session if "due_at" in fields else session.rearmed()


def sample_template(key: TemplateKey = KEY, **fields: Any) -> Template:
    """A template with an empty manifest."""
    return Template(key=key, **({"manifest": {}} | fields))


def sample_sandbox(id: str = "", **fields: Any) -> Sandbox:
    """A record of a sandbox that no driver made."""
    sandbox_id = SandboxId(id) if id else new_sandbox_id()
    values: dict[str, Any] = {
        "driver": "fake",
        "handle": f'{{"v": 1, "id": "{sandbox_id}"}}',
        "isolation": Isolation.NAMESPACE,
        "picod": Endpoint(scheme="unix", path=f"/nonexistent/{sandbox_id}.sock"),
    }
    return Sandbox(id=sandbox_id, **(values | fields))


def sample_warm(id: str = "", **fields: Any) -> WarmSandbox:
    """A pool entry of `KEY`, ready unless `state` says otherwise."""
    sandbox_id = SandboxId(id) if id else new_sandbox_id()
    state = fields.get("state", WarmState.READY)
    values: dict[str, Any] = {
        "template": KEY,
        "generation": 1,
        "state": state,
        "created_at": NOW,
        "sandbox": sample_sandbox(sandbox_id) if state is WarmState.READY else None,
    }
    return WarmSandbox(id=sandbox_id, **(values | fields))
