"""What the SDK returns, and how it is read from answers. Unknown fields are ignored, absent ones have defaults."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from agentcube.sdk._core.errors import CommandExecutionError, UnexpectedAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A finished command. Output is kept as bytes; `stdout` and `stderr` read it as UTF-8.

    Of each stream the server keeps a bounded amount (8 MiB); `*_truncated` says that there was more.
    Exit code 124: the timeout struck and the whole process tree is dead; 127: no such program.
    """

    stdout_bytes: bytes
    stderr_bytes: bytes
    exit_code: int
    duration_s: float = 0.0
    started_at: datetime | None = None
    ended_at: datetime | None = None
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    command: tuple[str, ...] = ()

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def check(self) -> Self:
        """This result. Raises CommandExecutionError when the exit code is not 0."""
        if self.exit_code != 0:
            raise CommandExecutionError(self.exit_code, self.stderr, list(self.command))
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One entry of a directory. `mode` is written as `ls -l` does; `size` is in bytes."""

    name: str
    size: int
    mode: str
    is_dir: bool
    modified: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """What the Go system answers to a creation."""

    session_id: str
    kind: str = ""
    sandbox_id: str = ""
    sandbox_name: str = ""
    owner: str | None = None
    entry_points: Sequence[Mapping[str, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A session as the server describes it. Durations in seconds; `isolation` is its sandbox's.

    `raw` is the whole answer: sandbox facts, usage, endpoints, and whatever newer servers add.
    """

    id: str
    kind: str
    namespace: str
    name: str
    phase: str
    reason: str = ""
    message: str = ""
    owner: str = ""
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_activity_at: datetime | None = None
    ttl_s: float | None = None
    idle_timeout_s: float | None = None
    suspend_after_s: float | None = None
    from_pool: bool = False
    state_lost: bool = False
    isolation: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateInfo:
    """An AgentRuntime or CodeInterpreter: its address, and its manifest as the server gave it."""

    kind: str
    namespace: str
    name: str
    manifest: Mapping[str, Any] = field(repr=False)
    created: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolInfo:
    """A template's warm pool: aim, state and what was asked of it. `raw` is the whole answer."""

    kind: str
    namespace: str
    name: str
    target: int
    ready: int
    starting: int
    claims: int = 0
    misses: int = 0
    last_error: str = ""
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def object_of(body: bytes, what: str) -> dict[str, Any]:
    """The JSON object of an answer. Raises UnexpectedAnswer."""
    try:
        value = json.loads(body)
    except ValueError:
        raise UnexpectedAnswer(f"{what}: the answer is no JSON; is the URL that of an AgentCube?") from None
    if not isinstance(value, dict):
        raise UnexpectedAnswer(f"{what}: the answer is no JSON object")
    return value


def created(body: bytes, what: str) -> Created:
    """The answer to a creation on the Go system's routes."""
    value = object_of(body, what)
    entry_points = value.get("entryPoints")
    owner = value.get("ownerId")
    return Created(
        session_id=_text(value, "sessionId", what),
        kind=_text(value, "kind"),
        sandbox_id=_text(value, "sandboxId"),
        sandbox_name=_text(value, "sandboxName"),
        owner=owner if isinstance(owner, str) else None,
        entry_points=entry_points if isinstance(entry_points, list) else (),
    )


def command_output(body: bytes, what: str) -> dict[str, Any]:
    """`stdout`, `stderr` (text) and `exit_code`: what existing programs get of a command."""
    value = object_of(body, what)
    exit_code = value.get("exit_code")
    if not isinstance(exit_code, int):
        raise UnexpectedAnswer(f"{what}: the answer has no exit_code")
    return {
        "stdout": value.get("stdout") or "",
        "stderr": value.get("stderr") or "",
        "exit_code": exit_code,
    }


def command_result(body: bytes, what: str, command: Sequence[str]) -> CommandResult:
    """A command's result, exact to the byte where the server sent bytes."""
    value = object_of(body, what)
    exit_code = value.get("exit_code")
    if not isinstance(exit_code, int):
        raise UnexpectedAnswer(f"{what}: the answer has no exit_code")
    duration = value.get("duration")
    return CommandResult(
        stdout_bytes=_stream(value, "stdout", what),
        stderr_bytes=_stream(value, "stderr", what),
        exit_code=exit_code,
        duration_s=float(duration) if isinstance(duration, int | float) else 0.0,
        started_at=_time(value.get("start_time")),
        ended_at=_time(value.get("end_time")),
        stdout_truncated=value.get("stdout_truncated") is True,
        stderr_truncated=value.get("stderr_truncated") is True,
        command=tuple(command),
    )


def file_dicts(body: bytes, what: str) -> list[dict[str, Any]]:
    """A directory's entries as the wire has them."""
    files = object_of(body, what).get("files")
    return [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []


def file_infos(body: bytes, what: str) -> list[FileInfo]:
    """A directory's entries."""
    return [file_info(entry) for entry in file_dicts(body, what)]


def file_info(value: Mapping[str, Any]) -> FileInfo:
    """One entry; the answer to a write has a `path` where a listing has a `name`."""
    return FileInfo(
        name=_text(value, "name") or _text(value, "path"),
        size=_count(value, "size"),
        mode=_text(value, "mode"),
        is_dir=value.get("is_dir") is True,
        modified=_time(value.get("modified")),
    )


def session_info(value: Mapping[str, Any], what: str) -> SessionInfo:
    """One session."""
    metadata, sandbox = value.get("metadata"), value.get("sandbox")
    return SessionInfo(
        id=_text(value, "id", what),
        kind=_text(value, "kind"),
        namespace=_text(value, "namespace"),
        name=_text(value, "name"),
        phase=_text(value, "phase", what),
        reason=_text(value, "reason"),
        message=_text(value, "message"),
        owner=_text(value, "owner"),
        created_at=_time(value.get("created_at")),
        expires_at=_time(value.get("expires_at")),
        last_activity_at=_time(value.get("last_activity_at")),
        ttl_s=_number(value, "ttl"),
        idle_timeout_s=_number(value, "idle_timeout"),
        suspend_after_s=_number(value, "suspend_after"),
        from_pool=value.get("from_pool") is True,
        state_lost=value.get("state_lost") is True,
        isolation=_text(sandbox, "isolation") if isinstance(sandbox, dict) else "",
        metadata=metadata if isinstance(metadata, dict) else {},
        raw=value,
    )


def template_info(
    value: Mapping[str, Any], what: str, *, namespace: str, created: bool = False
) -> TemplateInfo:
    """One template, from its manifest; `namespace` is where it was asked for."""
    meta = value.get("metadata")
    if not isinstance(meta, dict):
        raise UnexpectedAnswer(f"{what}: the manifest has no metadata")
    return TemplateInfo(
        kind=_text(value, "kind", what),
        namespace=_text(meta, "namespace") or namespace,
        name=_text(meta, "name", what),
        manifest=value,
        created=created,
    )


def pool_info(value: Mapping[str, Any]) -> PoolInfo:
    """One pool."""
    return PoolInfo(
        kind=_text(value, "kind"),
        namespace=_text(value, "namespace"),
        name=_text(value, "name"),
        target=_count(value, "target"),
        ready=_count(value, "ready"),
        starting=_count(value, "starting"),
        claims=_count(value, "claims"),
        misses=_count(value, "misses"),
        last_error=_text(value, "last_error"),
        raw=value,
    )


def page(body: bytes, what: str) -> tuple[list[dict[str, Any]], str | None]:
    """One page of a list: its items, and the cursor of the next page (None: this was the last)."""
    value = object_of(body, what)
    items, cursor = value.get("items"), value.get("next_cursor")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnexpectedAnswer(f"{what}: the answer has no items")
    return items, cursor if isinstance(cursor, str) and cursor else None


def _stream(value: Mapping[str, Any], name: str, what: str) -> bytes:
    encoded = value.get(f"{name}_base64")
    if isinstance(encoded, str):
        try:
            return base64.b64decode(encoded, validate=True)
        except binascii.Error:
            raise UnexpectedAnswer(f"{what}: {name}_base64 is no base64") from None
    text = value.get(name)
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def _text(value: Mapping[str, Any], name: str, what: str = "") -> str:
    """The text of a field. With `what`, the field is required and must not be empty."""
    text = value.get(name)
    if isinstance(text, str) and text:
        return text
    if what:
        raise UnexpectedAnswer(f"{what}: the answer has no {name}")
    return ""


def _count(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    return number if isinstance(number, int) else 0


def _number(value: Mapping[str, Any], name: str) -> float | None:
    number = value.get(name)
    return float(number) if isinstance(number, int | float) else None


def _time(value: object) -> datetime | None:
    """A time of RFC 3339; Go writes nanoseconds, of which datetime keeps the microseconds."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None
