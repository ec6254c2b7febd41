"""What the SDK returns, and how it is read from answers. Unknown fields are ignored, absent ones have defaults."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from agentcube.errors import SessionFailed
from agentcube.sdk._core.display import ERROR_COLOUR, preformatted
from agentcube.sdk._core.errors import CommandExecutionError, UnexpectedAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandResult:
    """A finished command. Output is kept as bytes; `stdout` and `stderr` read it as UTF-8.

    Of each stream a bounded amount is kept (16 MiB; by `sessions.exec` 8 MiB); `*_truncated` says that there was
    more. Exit code 124: the timeout struck and the whole process tree is dead; 127: no such program; 128+n: ended
    by signal n, which is in `signal`.
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
    signal: str | None = None
    timed_out: bool = False

    @property
    def stdout(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as text; bytes that are not UTF-8 are replaced."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def __str__(self) -> str:
        parts = (self.stdout, self.stderr, self._how_it_ended())
        return "\n".join(part.rstrip("\n") for part in parts if part)

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """For Jupyter: what the command wrote, and how it ended when that was not well."""
        parts = [preformatted(self.stdout)] if self.stdout else []
        if self.stderr:
            parts.append(preformatted(self.stderr, colour=ERROR_COLOUR))
        if how := self._how_it_ended():
            parts.append(f"<p><em>{html.escape(how)}</em></p>")
        return {"text/plain": str(self), "text/html": "\n".join(parts)}, {}

    def _how_it_ended(self) -> str:
        if self.timed_out:
            return "timed out (exit code 124)"
        by = f" ({self.signal})" if self.signal else ""
        return f"exit code {self.exit_code}{by}" if self.exit_code else ""

    def check(self) -> Self:
        """This result. Raises CommandExecutionError when the exit code is not 0."""
        if self.exit_code != 0:
            raise CommandExecutionError(self.exit_code, self.stderr, list(self.command), self.timed_out)
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A file, directory or other entry. `path` is relative to the workspace, `size` in bytes.

    `type` is "file", "directory", "symlink" (then `target` is where it leads), "fifo", "socket" or "device". `mode` is
    written as `ls -l` does, `permissions` in octal ("0644").
    """

    name: str
    size: int
    mode: str
    is_dir: bool
    modified: datetime | None = None
    path: str = ""
    type: str = ""
    permissions: str = ""
    uid: int | None = None
    gid: int | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """What was copied between this machine and a session; of directories, what could not go along is in `left_out`."""

    files: int
    size: int
    left_out: Sequence[str] = ()


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

    `sleep` is the tier in which it sleeps ("frozen"), empty while it is awake; `stays_awake` says why its
    `suspend_after` has no effect.

    `raw` is the whole answer: sandbox facts, usage, endpoints, and whatever newer servers add.
    """

    id: str
    kind: str
    namespace: str
    name: str
    phase: str
    phase_since: datetime | None = None
    reason: str = ""
    message: str = ""
    sleep: str = ""
    stays_awake: str = ""
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
        session_id=text_of(value, "sessionId", what),
        kind=text_of(value, "kind"),
        sandbox_id=text_of(value, "sandboxId"),
        sandbox_name=text_of(value, "sandboxName"),
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
        started_at=time_of(value.get("start_time")),
        ended_at=time_of(value.get("end_time")),
        stdout_truncated=value.get("stdout_truncated") is True,
        stderr_truncated=value.get("stderr_truncated") is True,
        command=tuple(command),
        signal=text_of(value, "signal") or None,
    )


def file_dicts(body: bytes, what: str) -> list[dict[str, Any]]:
    """A directory's entries as the wire has them."""
    files = object_of(body, what).get("files")
    return [entry for entry in files if isinstance(entry, dict)] if isinstance(files, list) else []


def file_infos(body: bytes, what: str) -> list[FileInfo]:
    """A directory's entries."""
    return [file_info(entry) for entry in file_dicts(body, what)]


def file_info(value: Mapping[str, Any]) -> FileInfo:
    """One entry; the answer to a write may have a `path` where a listing has a `name`."""
    is_dir = value.get("is_dir") is True
    uid, gid = value.get("uid"), value.get("gid")
    return FileInfo(
        name=text_of(value, "name") or text_of(value, "path"),
        path=text_of(value, "path") or text_of(value, "name"),
        type=text_of(value, "type") or ("directory" if is_dir else "file"),
        permissions=text_of(value, "permissions"),
        uid=uid if isinstance(uid, int) else None,
        gid=gid if isinstance(gid, int) else None,
        target=text_of(value, "target") or None,
        size=count_of(value, "size"),
        mode=text_of(value, "mode"),
        is_dir=is_dir,
        modified=time_of(value.get("modified")),
    )


def start_failure(made: SessionInfo) -> SessionFailed:
    """What to raise for a session that was made and could not be started."""
    return SessionFailed(f"session {made.id} failed: {made.reason}: {made.message}")


def session_info(value: Mapping[str, Any], what: str) -> SessionInfo:
    """One session."""
    metadata, sandbox = value.get("metadata"), value.get("sandbox")
    return SessionInfo(
        id=text_of(value, "id", what),
        kind=text_of(value, "kind"),
        namespace=text_of(value, "namespace"),
        name=text_of(value, "name"),
        phase=text_of(value, "phase", what),
        phase_since=time_of(value.get("phase_since")),
        sleep=text_of(value, "sleep"),
        stays_awake=text_of(value, "stays_awake"),
        reason=text_of(value, "reason"),
        message=text_of(value, "message"),
        owner=text_of(value, "owner"),
        created_at=time_of(value.get("created_at")),
        expires_at=time_of(value.get("expires_at")),
        last_activity_at=time_of(value.get("last_activity_at")),
        ttl_s=number_of(value, "ttl"),
        idle_timeout_s=number_of(value, "idle_timeout"),
        suspend_after_s=number_of(value, "suspend_after"),
        from_pool=value.get("from_pool") is True,
        state_lost=value.get("state_lost") is True,
        isolation=text_of(sandbox, "isolation") if isinstance(sandbox, dict) else "",
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
        kind=text_of(value, "kind", what),
        namespace=text_of(meta, "namespace") or namespace,
        name=text_of(meta, "name", what),
        manifest=value,
        created=created,
    )


def pool_info(value: Mapping[str, Any]) -> PoolInfo:
    """One pool."""
    return PoolInfo(
        kind=text_of(value, "kind"),
        namespace=text_of(value, "namespace"),
        name=text_of(value, "name"),
        target=count_of(value, "target"),
        ready=count_of(value, "ready"),
        starting=count_of(value, "starting"),
        claims=count_of(value, "claims"),
        misses=count_of(value, "misses"),
        last_error=text_of(value, "last_error"),
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
        except ValueError:  # binascii.Error, or not ASCII
            raise UnexpectedAnswer(f"{what}: {name}_base64 is no base64") from None
    text = value.get(name)
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""


def text_of(value: Mapping[str, Any], name: str, what: str = "") -> str:
    """The text of a field. With `what`, the field is required and must not be empty."""
    text = value.get(name)
    if isinstance(text, str) and text:
        return text
    if what:
        raise UnexpectedAnswer(f"{what}: the answer has no {name}")
    return ""


def count_of(value: Mapping[str, Any], name: str) -> int:
    number = value.get(name)
    return number if isinstance(number, int) else 0


def number_of(value: Mapping[str, Any], name: str) -> float | None:
    number = value.get(name)
    return float(number) if isinstance(number, int | float) else None


def time_of(value: object) -> datetime | None:
    """A time of RFC 3339; Go writes nanoseconds, of which datetime keeps the microseconds."""
    if not isinstance(value, str):
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return None
