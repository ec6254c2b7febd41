"""Records as JSON text and back, field by field, for stores that write them down.

Every record carries `v`. A reader ignores fields it does not know and refuses a `v` above its own:
raise `VERSION` when an older reader would misunderstand a record, not when a field is added (then
give it a default here). Times are ISO 8601 in UTC, spans whole microseconds, so that a round trip
is exact. The text is ASCII.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from agentcube.errors import Invalid, StoreFailed
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.lifecycle import Phase
from agentcube.model.pool import WarmSandbox, WarmState
from agentcube.model.sandbox import Endpoint, HostMount, Isolation, Port, Resources, Sandbox
from agentcube.model.session import Hold, PhaseChange, Session
from agentcube.model.template import AuthMode, Kind, Template, TemplateKey, WarmPool
from agentcube.ports.store import Reservation

VERSION = 1

Fields = Mapping[str, Any]  # what JSON gives: its shape is checked by reading it
R = TypeVar("R")

_MICROSECOND = timedelta(microseconds=1)
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError)
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def session_to_text(session: Session) -> str:
    """The session as a record."""
    return _write(
        {
            "id": session.id,
            "template": list(session.template),
            "generation": session.generation,
            "owner": session.owner,
            "phase": session.phase,
            "created_at": _time(session.created_at),
            "last_activity_at": _time(session.last_activity_at),
            "expires_at": _time(session.expires_at),
            "idle_timeout_us": _span(session.idle_timeout),
            "suspend_after_us": _optional(session.suspend_after, _span),
            "auth_mode": session.auth_mode,
            "reason": session.reason,
            "message": session.message,
            "state_lost": session.state_lost,
            "from_pool": session.from_pool,
            "metadata": dict(session.metadata),
            "env": dict(session.env),
            "resources": _optional(session.resources, _resources),
            "routes": [_port(p) for p in session.routes],
            "exposed": [[port, key] for port, key in session.exposed.items()],
            "sandbox": _optional(session.sandbox, _sandbox),
            "due_at": _optional(session.due_at, _time),
            "history": [_change(c) for c in session.history],
            "hold": _optional(session.hold, _hold),
            "attempt": session.attempt,
            "keyed": session.keyed,
            "joined": session.joined,
            "answer_by": _optional(session.answer_by, _time),
            "revision": session.revision,
        }
    )


def session_from_text(text: str, *, name: str) -> Session:
    """The session in a record. Raises StoreFailed naming `name` when it cannot be read."""
    return _read(
        text,
        name,
        lambda f: Session(
            id=SessionId(f["id"]),
            template=_read_key(f["template"]),
            generation=f["generation"],
            owner=f["owner"],
            phase=Phase(f["phase"]),
            created_at=_read_time(f["created_at"]),
            last_activity_at=_read_time(f["last_activity_at"]),
            expires_at=_read_time(f["expires_at"]),
            idle_timeout=_read_span(f["idle_timeout_us"]),
            suspend_after=_optional(f["suspend_after_us"], _read_span),
            auth_mode=AuthMode(f["auth_mode"]),
            reason=f["reason"],
            message=f["message"],
            state_lost=f["state_lost"],
            from_pool=f["from_pool"],
            metadata=dict(f["metadata"]),
            env=dict(f["env"]),
            resources=_optional(f["resources"], _read_resources),
            routes=tuple(_read_port(p) for p in f["routes"]),
            exposed=dict(f.get("exposed", ())),
            sandbox=_optional(f["sandbox"], _read_sandbox),
            due_at=_optional(f["due_at"], _read_time),
            history=tuple(_read_change(c) for c in f.get("history", ())),
            hold=_optional(f.get("hold"), _read_hold),
            attempt=f.get("attempt", 1),
            keyed=f.get("keyed", False),
            joined=f.get("joined", False),
            answer_by=_optional(f.get("answer_by"), _read_time),
            revision=f["revision"],
        ),
    )


def sandbox_to_text(sandbox: Sandbox) -> str:
    """The sandbox as it stands inside the records of sessions and pool entries."""
    return _encode(_sandbox(sandbox))


def sandbox_from_text(text: str, *, name: str) -> Sandbox:
    """The sandbox in such a text, found in the record `name`. Raises StoreFailed."""
    try:
        return _read_sandbox(json.loads(text))
    except _UNREADABLE as exc:
        raise _damaged(name, exc) from exc


def warm_to_text(entry: WarmSandbox) -> str:
    """The pool entry as a record."""
    return _write(
        {
            "id": entry.id,
            "template": list(entry.template),
            "generation": entry.generation,
            "state": entry.state,
            "created_at": _time(entry.created_at),
            "sandbox": _optional(entry.sandbox, _sandbox),
        }
    )


def warm_from_text(text: str, *, name: str) -> WarmSandbox:
    """The pool entry in a record. Raises StoreFailed naming `name`."""
    return _read(
        text,
        name,
        lambda f: WarmSandbox(
            id=SandboxId(f["id"]),
            template=_read_key(f["template"]),
            generation=f["generation"],
            state=WarmState(f["state"]),
            created_at=_read_time(f["created_at"]),
            sandbox=_optional(f["sandbox"], _read_sandbox),
        ),
    )


def template_to_text(template: Template) -> str:
    """The template as a record. Raises Invalid when its manifest holds what JSON cannot."""
    pool = template.warm_pool
    return _write(
        {
            "key": list(template.key),
            "manifest": dict(template.manifest),
            "generation": template.generation,
            "image": template.image,
            "environment": template.environment,
            "command": list(template.command),
            "working_dir": template.working_dir,
            "env": dict(template.env),
            "ports": [_port(p) for p in template.ports],
            "mounts": [_mount(m) for m in template.mounts],
            "resources": _resources(template.resources),
            "isolation": template.isolation,
            "auth_mode": template.auth_mode,
            "session_timeout_us": _span(template.session_timeout),
            "max_session_duration_us": _span(template.max_session_duration),
            "suspend_after_us": _optional(template.suspend_after, _span),
            "warm_pool": {"min": pool.min, "max": pool.max, "target": pool.target},
        }
    )


def template_from_text(text: str, *, name: str) -> Template:
    """The template in a record. Raises StoreFailed naming `name`."""
    return _read(
        text,
        name,
        lambda f: Template(
            key=_read_key(f["key"]),
            manifest=f["manifest"],
            generation=f["generation"],
            image=f["image"],
            environment=f["environment"],
            command=tuple(f["command"]),
            working_dir=f["working_dir"],
            env=dict(f["env"]),
            ports=tuple(_read_port(p) for p in f["ports"]),
            mounts=tuple(_read_mount(m) for m in f["mounts"]),
            resources=_read_resources(f["resources"]),
            isolation=Isolation(f["isolation"]),
            auth_mode=AuthMode(f["auth_mode"]),
            session_timeout=_read_span(f["session_timeout_us"]),
            max_session_duration=_read_span(f["max_session_duration_us"]),
            suspend_after=_optional(f["suspend_after_us"], _read_span),
            warm_pool=WarmPool(**{bound: f["warm_pool"][bound] for bound in ("min", "max", "target")}),
        ),
    )


def reservation_to_text(reservation: Reservation) -> str:
    """The reservation as a record."""
    return _write(
        {
            "key": reservation.key,
            "fingerprint": reservation.fingerprint,
            "session_id": reservation.session_id,
            "expires_at": _time(reservation.expires_at),
        }
    )


def reservation_from_text(text: str, *, name: str) -> Reservation:
    """The reservation in a record. Raises StoreFailed naming `name`."""
    return _read(
        text,
        name,
        lambda f: Reservation(
            key=f["key"],
            fingerprint=f["fingerprint"],
            session_id=SessionId(f["session_id"]),
            expires_at=_read_time(f["expires_at"]),
        ),
    )


def key_to_text(key: TemplateKey) -> str:
    """A template's key as a row's key; unambiguous, as no part holds a slash."""
    return "/".join(key)


def key_from_text(text: str) -> TemplateKey:
    """The key in `key_to_text`'s text. Raises StoreFailed."""
    try:
        return _read_key(text.split("/"))
    except ValueError as exc:
        raise StoreFailed(f"the store's template {text!r} has no valid key") from exc


def _write(fields: dict[str, Any]) -> str:
    try:
        return _encode({"v": VERSION, **fields})
    except (TypeError, ValueError) as exc:
        raise Invalid(f"a value cannot be stored as JSON: {exc}") from exc


def _read(text: str, name: str, build: Callable[[Fields], R]) -> R:
    try:
        fields = json.loads(text)
        version = fields["v"]
        if version <= VERSION:
            return build(fields)
    except _UNREADABLE as exc:
        raise _damaged(name, exc) from exc
    raise StoreFailed(
        f"{name} was written by a newer AgentCube (record version {version}, this one reads up to {VERSION});"
        " upgrade this one"
    )


def _damaged(name: str, exc: Exception) -> StoreFailed:
    return StoreFailed(f"{name} is damaged: it does not read as a record ({exc!r})")


def _change(c: PhaseChange) -> list[Any]:
    return [c.seq, c.phase, _time(c.at), c.reason, c.message]


def _read_change(row: list[Any]) -> PhaseChange:
    seq, phase, at, reason, message = row
    return PhaseChange(seq=seq, phase=Phase(phase), at=_read_time(at), reason=reason, message=message)


def _hold(hold: Hold) -> list[Any]:
    return [hold.owner, _time(hold.until)]


def _read_hold(row: list[Any]) -> Hold:
    owner, until = row
    return Hold(owner=owner, until=_read_time(until))


def _sandbox(sandbox: Sandbox) -> dict[str, Any]:
    return {
        "id": sandbox.id,
        "driver": sandbox.driver,
        "handle": sandbox.handle,
        "isolation": sandbox.isolation,
        "picod": _endpoint(sandbox.picod),
        "ports": [[port, _endpoint(e)] for port, e in sandbox.ports.items()],
        "others": _optional(sandbox.others, _endpoint),
        "facts": dict(sandbox.facts),
    }


def _read_sandbox(f: Fields) -> Sandbox:
    return Sandbox(
        id=SandboxId(f["id"]),
        driver=f["driver"],
        handle=f["handle"],
        isolation=Isolation(f["isolation"]),
        picod=_read_endpoint(f["picod"]),
        ports={port: _read_endpoint(e) for port, e in f["ports"]},
        others=_optional(f.get("others"), _read_endpoint),
        facts=dict(f["facts"]),
    )


def _endpoint(e: Endpoint) -> dict[str, Any]:
    return {"scheme": e.scheme, "path": e.path, "host": e.host, "port": e.port}


def _read_endpoint(f: Fields) -> Endpoint:
    return Endpoint(scheme=f["scheme"], path=f["path"], host=f["host"], port=f["port"])


def _resources(r: Resources) -> dict[str, Any]:
    return {
        "cpu_millis": r.cpu_millis,
        "memory_bytes": r.memory_bytes,
        "pids_max": r.pids_max,
        "workspace_bytes": r.workspace_bytes,
        "tmp_bytes": r.tmp_bytes,
    }


def _read_resources(f: Fields) -> Resources:
    return Resources(
        cpu_millis=f["cpu_millis"],
        memory_bytes=f["memory_bytes"],
        pids_max=f["pids_max"],
        workspace_bytes=f["workspace_bytes"],
        tmp_bytes=f["tmp_bytes"],
    )


def _port(p: Port) -> dict[str, Any]:
    return {
        "port": p.port,
        "path_prefix": p.path_prefix,
        "name": p.name,
        "passes_credentials": p.passes_credentials,
    }


def _read_port(f: Fields) -> Port:
    return Port(
        port=f["port"],
        path_prefix=f["path_prefix"],
        name=f["name"],
        passes_credentials=f.get("passes_credentials", False),
    )


def _mount(m: HostMount) -> dict[str, Any]:
    return {"source": m.source, "target": m.target, "read_only": m.read_only}


def _read_mount(f: Fields) -> HostMount:
    return HostMount(source=f["source"], target=f["target"], read_only=f["read_only"])


def _read_key(parts: list[str]) -> TemplateKey:
    kind, namespace, name = parts
    return TemplateKey(Kind(kind), namespace, name)


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def _read_time(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return at


def _span(span: timedelta) -> int:
    return span // _MICROSECOND


def _read_span(microseconds: int) -> timedelta:
    return microseconds * _MICROSECOND


A = TypeVar("A")


def _optional(value: A | None, convert: Callable[[A], R]) -> R | None:
    return None if value is None else convert(value)
