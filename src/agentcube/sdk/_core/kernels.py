"""Kernels in a session: what to ask, what is answered, and where a reader of a cell's events stands. No I/O."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentcube.sdk._core.display import Result
from agentcube.sdk._core.errors import InvalidArgument, UnexpectedAnswer
from agentcube.sdk._core.events import (
    CellEnded,
    CellError,
    CellEvent,
    CellStarted,
    Displayed,
    DisplayUpdated,
    Gap,
    OutputCleared,
    Stderr,
    Stdout,
)
from agentcube.sdk._core.processes import GRACE_S, positive
from agentcube.sdk._core.requests import Place, QueryValue, Request, duration, segment
from agentcube.sdk._core.results import number_of, object_of, text_of, time_of
from agentcube.sdk._core.tracks import SILENCE_S, Track, optional_whole_of, whole_of
from agentcube.wire.names import IDEMPOTENCY_HEADER

CODE_BYTES_MAX = 8 * 1024 * 1024
WAIT_S_MAX = 600.0
START_TIMEOUT_S = 120.0  # a kernel's first import may come from a cold disk
INTERRUPT_TIMEOUT_S = 60.0

DEFAULT_KERNELS = {"python": "main", "bash": "bash"}
"""The kernel that runs code of a language when none is named; made by its first cell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelInfo:
    """A kernel as the server describes it. `state`: "starting", "idle", "busy" or "dead"; `raw` is the whole answer."""

    id: str
    language: str
    state: str
    implementation: str = ""
    execution: str | None = None
    execution_count: int | None = None
    pid: int | None = None
    created_at: datetime | None = None
    last_active_at: datetime | None = None
    reason: str = ""
    memory_bytes: int | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def language_of(language: str) -> str:
    """The wire's name of a language. Raises InvalidArgument."""
    known = {"python": "python", "python3": "python", "py": "python", "bash": "bash", "sh": "bash"}
    name = known.get(language.lower()) if isinstance(language, str) else None
    if name is None:
        raise InvalidArgument(f"unsupported language {language!r}: use python or bash")
    return name


def put_kernel(
    place: Place, id: str, language: str, *, cwd: str | None = None, env: Mapping[str, str] | None = None
) -> Request:
    """A kernel of that id, made where there is none. Repeatable."""
    body = _described(language, cwd, env)
    return kernel_call(place, "PUT", id, "create", json=body, timeout_s=START_TIMEOUT_S, repeatable=True)


def list_kernels(place: Place) -> Request:
    """The kernels of a session."""
    return Request(
        method="GET",
        url=f"{place.prefix}/kernels",
        what=f"list the kernels of session {place.session_id}",
        headers=place.headers,
        repeatable=True,
    )


def interrupt_kernel(
    place: Place, id: str, *, execution: str | None = None, grace_s: float | None = None
) -> Request:
    """KeyboardInterrupt in a kernel; with `execution` only while it runs that one."""
    body: dict[str, Any] = {}
    if execution is not None:
        body["execution"] = execution
    if grace_s is not None:
        body["grace"] = duration(positive("grace", grace_s))
    return kernel_call(
        place,
        "POST",
        id,
        "interrupt",
        "/interrupt",
        json=body,
        timeout_s=INTERRUPT_TIMEOUT_S,
        repeatable=execution is not None,
    )


def restart_kernel(place: Place, id: str) -> Request:
    """The kernel again, empty. Repeatable: it ends with an empty kernel."""
    return kernel_call(
        place, "POST", id, "restart", "/restart", json={}, timeout_s=START_TIMEOUT_S, repeatable=True
    )


def execute_cell(
    place: Place,
    id: str,
    code: str,
    *,
    create: str | None = None,
    timeout_s: float | None = None,
    wait_s: float = 0.0,
) -> Request:
    """Execution of a cell. `create`: the language of the kernel to make when there is none, or only a dead one.

    Repeatable: it carries a key of its own, under which the server runs the code once.
    """
    if not isinstance(code, str):
        raise InvalidArgument(f"code must be text, not {type(code).__name__}")
    if len(code.encode("utf-8", "surrogatepass")) > CODE_BYTES_MAX:
        raise InvalidArgument(
            f"a cell has at most {CODE_BYTES_MAX} bytes: write a file, and run or import that"
        )
    if not 0 <= wait_s <= WAIT_S_MAX:
        raise InvalidArgument(f"wait must be from 0 to {WAIT_S_MAX:g} seconds, not {wait_s!r}")
    body: dict[str, Any] = {"code": code, "grace": duration(GRACE_S)}
    if create is not None:
        body["create"] = _described(create, None, None)
    if timeout_s is not None:
        body["timeout"] = duration(positive("timeout", timeout_s))
    if wait_s:
        body["wait"] = duration(wait_s)
    return Request(
        method="POST",
        url=f"{place.prefix}/kernels/{segment(id, 'kernel id')}/execute",
        what=f"run code in kernel {id} of session {place.session_id}",
        json=body,
        headers={**place.headers, "accept-encoding": "identity", IDEMPOTENCY_HEADER: uuid.uuid4().hex},
        timeout_s=wait_s + SILENCE_S,
        repeatable=True,
    )


def kernel_call(place: Place, method: str, id: str, verb: str, below: str = "", **rest: Any) -> Request:
    """Any call about one kernel."""
    return Request(
        method=method,
        url=f"{place.prefix}/kernels/{segment(id, 'kernel id')}{below}",
        what=f"{verb} kernel {id} of session {place.session_id}",
        headers={**place.headers, "accept-encoding": "identity"},
        **rest,
    )


def kernels_of(body: bytes, what: str) -> list[KernelInfo]:
    """The kernels of an answer."""
    items = object_of(body, what).get("kernels")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnexpectedAnswer(f"{what}: the answer has no kernels")
    return [kernel_info(item, what) for item in items]


def kernel_info(value: Mapping[str, Any], what: str) -> KernelInfo:
    """One kernel."""
    return KernelInfo(
        id=text_of(value, "id", what),
        language=text_of(value, "language"),
        state=text_of(value, "state", what),
        implementation=text_of(value, "implementation"),
        execution=text_of(value, "execution") or None,
        execution_count=_count(value),
        pid=optional_whole_of(value, "pid"),
        created_at=time_of(value.get("created_at")),
        last_active_at=time_of(value.get("last_active_at")),
        reason=text_of(value, "reason"),
        memory_bytes=optional_whole_of(value, "memory_bytes"),
        raw=value,
    )


class CellTrack(Track[CellEvent]):
    """The events of one execution. They are numbered, so what came before is known when it comes again."""

    def __init__(self, place: Place, kernel: str, start: Request) -> None:
        super().__init__(start.what, owned=True)
        self.execution: str | None = None
        self._place = place
        self._kernel = kernel
        self._start = start
        self._taken = 0
        self._told = False

    @property
    def identified(self) -> bool:
        return self.execution is not None

    def request(self, *, silence_s: float = SILENCE_S) -> Request:
        if self.execution is None:
            return self._start.waiting(self._start.timeout_s - SILENCE_S + silence_s)
        params: dict[str, QueryValue] = {"after": self._taken}
        below = f"/executions/{segment(self.execution, 'execution id')}"
        return kernel_call(
            self._place,
            "GET",
            self._kernel,
            "read",
            below,
            params=params,
            timeout_s=silence_s,
            repeatable=True,
        )

    def cancellation(self) -> Request | None:
        if not self.owned or self.execution is None or self.ended:
            return None
        return interrupt_kernel(self._place, self._kernel, execution=self.execution)

    def _events(self, name: str, members: dict[str, Any]) -> Iterator[CellEvent]:
        if name == "gap":
            self._told = True
            yield Gap(
                stream="events",
                start=whole_of(members, "from", self.what),
                end=whole_of(members, "to", self.what),
            )
            return
        seq = whole_of(members, "seq", self.what, self._taken + 1)
        if seq <= self._taken:
            return
        if seq > self._taken + 1 and not self._told:
            yield Gap(stream="events", start=self._taken + 1, end=seq - 1)
        self._taken, self._told = seq, False
        self.advance()
        event = _event(name, members, self.what)
        if isinstance(event, CellStarted):
            self.execution = event.execution
        self.ended = isinstance(event, CellEnded)
        if event is not None:
            yield event


def _event(name: str, members: dict[str, Any], what: str) -> CellEvent | None:
    """The event that a line stands for; None for one of a newer server."""
    match name:
        case "stdout" | "stderr":
            text = text_of(members, "text")
            kind = Stdout if name == "stdout" else Stderr
            return kind(text=text, data=text.encode("utf-8", "replace"))
        case "display_data":
            return Displayed(result=_result(members))
        case "execute_result":
            return Displayed(result=_result(members, is_value=True))
        case "update_display_data":
            return DisplayUpdated(result=_result(members))
        case "error":
            lines = members.get("traceback")
            traceback = tuple(map(str, lines)) if isinstance(lines, list) else ()
            return CellError(
                name=text_of(members, "name"), value=text_of(members, "value"), traceback=traceback
            )
        case "clear_output":
            return OutputCleared(wait=members.get("wait") is True)
        case "start":
            return CellStarted(
                execution=text_of(members, "execution", what),
                kernel=text_of(members, "kernel"),
                execution_count=_count(members),
            )
        case "end":
            return CellEnded(
                status=text_of(members, "status", what),
                execution_count=_count(members),
                duration_s=number_of(members, "duration") or 0.0,
                state_lost=members.get("state_lost") is True,
                reason=text_of(members, "reason"),
                exit_code=optional_whole_of(members, "exit_code"),
            )
    return None


def _result(members: Mapping[str, Any], *, is_value: bool = False) -> Result:
    data, metadata = members.get("data"), members.get("metadata")
    return Result(
        data=data if isinstance(data, dict) else {},
        metadata=metadata if isinstance(metadata, dict) else {},
        display_id=text_of(members, "display_id") or None,
        is_value=is_value,
        execution_count=_count(members) if is_value else None,
    )


def _described(language: str, cwd: str | None, env: Mapping[str, str] | None) -> dict[str, Any]:
    body: dict[str, Any] = {"language": language_of(language)}
    if cwd:
        body["working_dir"] = cwd
    if env:
        body["env"] = dict(env)
    return body


def _count(members: Mapping[str, Any]) -> int | None:
    return optional_whole_of(members, "execution_count")
