"""Valid domain values with defaults, so that a test spells out only what it is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from agentcube.model.ids import SandboxId, SessionId, new_sandbox_id, new_session_id
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.sandbox import Endpoint, HostMount, Isolation, Port, Resources, Sandbox
from agentcube.model.session import Hold, PhaseChange, Session
from agentcube.model.template import AuthMode, Kind, Template, TemplateKey, WarmPool

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


def full_sandbox() -> Sandbox:
    """A sandbox record with every field set to something else than its default."""
    return sample_sandbox(
        isolation=Isolation.GVISOR,
        picod=Endpoint(scheme="tcp", path="/run/picod.sock", host="10.0.0.7", port=8080),
        ports={8000: Endpoint(scheme="passed", path="/run/control.sock", host="h", port=8000)},
        others=Endpoint(scheme="passed", path="/run/control.sock", host="h", port=1),
        facts={"limits": "cgroup", "quota": "hard"},
    )


def full_session(**fields: Any) -> Session:
    """A session with every field set to something else than its default, and awkward text in it."""
    values: dict[str, Any] = {
        "template": TemplateKey(Kind.AGENT_RUNTIME, "team-a", "agent"),
        "generation": 7,
        "phase": Phase.READY,
        "last_activity_at": NOW + timedelta(seconds=3, microseconds=141592),
        "idle_timeout": timedelta(seconds=1, microseconds=1),
        "suspend_after": timedelta(milliseconds=500),
        "auth_mode": AuthMode.NONE,
        "reason": "woke",
        "message": 'quotes " and \\ and \n and ☃ and \x00 and \ud800',
        "state_lost": True,
        "from_pool": True,
        "metadata": {"a": "1", "☃": ""},
        "env": {"PATH": "/bin"},
        "resources": full_resources(),
        "routes": (Port(port=8000, path_prefix="/api", name="http", passes_credentials=True),),
        "exposed": {3000: "key"},
        "sandbox": full_sandbox(),
        "due_at": NOW + timedelta(seconds=9),
        "history": (PhaseChange(seq=4, phase=Phase.READY, at=NOW, reason="woke", message="☃"),),
        "hold": Hold(owner="me", until=NOW + timedelta(seconds=3)),
        "attempt": 2,
        "keyed": True,
        "joined": True,
        "answer_by": NOW + timedelta(seconds=60),
        "revision": 5,
    }
    return sample_session(**(values | fields))


def full_resources() -> Resources:
    """Resources of which none is the default."""
    return Resources(cpu_millis=1, memory_bytes=2, pids_max=3, workspace_bytes=4, tmp_bytes=5)


def full_template(key: TemplateKey = KEY) -> Template:
    """A template with every field set to something else than its default."""
    return Template(
        key=key,
        manifest={"kind": "CodeInterpreter", "spec": {"a": [1, 2.5, None, True, "☃"]}},
        generation=3,
        image="dir:/srv/image",
        environment="science",
        command=("/bin/serve", "--port", "8000"),
        working_dir="/srv",
        env={"A": "1"},
        ports=(Port(port=8000, path_prefix="/api", name="http", passes_credentials=True),),
        mounts=(HostMount(source="/data", target="/mnt/data", read_only=False),),
        resources=full_resources(),
        isolation=Isolation.MICROVM,
        auth_mode=AuthMode.NONE,
        session_timeout=timedelta(seconds=61),
        max_session_duration=timedelta(days=2, microseconds=3),
        suspend_after=timedelta(seconds=30),
        warm_pool=WarmPool(min=1, max=9, target=4),
    )
