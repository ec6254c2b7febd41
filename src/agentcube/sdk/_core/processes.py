"""Processes in a session: what to ask, what is answered, and where a reader of their output stands. No I/O."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agentcube.sdk._core.errors import InvalidArgument, UnexpectedAnswer
from agentcube.sdk._core.requests import Place, QueryValue, Request, duration, segment
from agentcube.sdk._core.results import number_of, object_of, text_of, time_of
from agentcube.sdk._core.tracks import optional_whole_of
from agentcube.wire.names import IDEMPOTENCY_HEADER

GRACE_S = 30.0
"""How long what we started goes on without us after a lost connection, for us to come back."""

INPUT_BYTES_MAX = 24 * 1024 * 1024  # what the server takes with a start
STDIN_BYTES = 256 * 1024  # of one write: small enough to be repeated after a lost connection
STDIN_TIMEOUT_S = 60.0  # the server answers within 30 s, having written what the pipe took
WAIT_S = 30.0  # of one call; longer waits ask again


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as the server describes it. `state` is "running" or "exited"; `raw` is the whole answer.

    `pid` None is a program that could not be executed.
    `command` is its argv; `shell` the line instead. `kept` says which bytes of each stream can still be had.
    """

    id: str
    pid: int | None
    state: str
    command: tuple[str, ...] = ()
    shell: str = ""
    cwd: str = ""
    background: bool = False
    terminal: tuple[int, int] | None = None
    stdin_open: bool = False
    exit_code: int | None = None
    signal: str | None = None
    timed_out: bool = False
    error: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    duration_s: float | None = None
    kept: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.state == "running"


def start_process(
    place: Place,
    command: str | Sequence[str],
    *,
    stdin: bool | bytes | str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    timeout_s: float | None = None,
    background: bool = False,
    terminal: tuple[int, int] | None = None,
    doing: str = "",
) -> Request:
    """The start of a process: text is a shell line, a sequence is an argv. Repeatable: it carries a key of its own.

    `stdin`: True leaves it open; bytes or text are given to the program; else it reads nothing.
    `doing`: what errors call it, instead of the command.
    """
    if not isinstance(command, str | Sequence):
        raise InvalidArgument(f"a command is a line or a list of words, not {type(command).__name__}")
    shown = command if isinstance(command, str) else " ".join(map(str, command))
    if not shown.strip():
        raise InvalidArgument("the command is empty")
    body: dict[str, Any] = (
        {"shell": command} if isinstance(command, str) else {"command": [*map(str, command)]}
    )
    body |= _stdin(stdin)
    if env:
        body["env"] = dict(env)
    if cwd:
        body["working_dir"] = cwd
    if timeout_s is not None:
        body["timeout"] = duration(positive("timeout", timeout_s))
    if terminal is not None:
        body["pty"] = {"cols": terminal[0], "rows": terminal[1]}
    body |= {"background": True} if background else {"grace": duration(GRACE_S)}
    return Request(
        method="POST",
        url=f"{place.prefix}/processes",
        what=f"{doing or f'run {_short(shown)}'} in session {place.session_id}",
        params={"encoding": "base64"},
        json=body,
        headers={**place.headers, "accept-encoding": "identity", IDEMPOTENCY_HEADER: uuid.uuid4().hex},
        repeatable=True,
    )


def process_output(
    place: Place, id: str, *, stdout: int = 0, stderr: int = 0, follow: bool = True
) -> Request:
    """The output of a process from these positions, as events; with `follow` also what is still to come."""
    params = {
        "stdout": stdout,
        "stderr": stderr,
        "follow": "true" if follow else "false",
        "encoding": "base64",
    }
    return process_call(place, "GET", id, "read", "/output", params=params, repeatable=True)


def write_stdin(place: Place, id: str, data: bytes, *, offset: int | None, close: bool = False) -> Request:
    """Input for a process. Repeatable with an `offset`, and without data."""
    params: dict[str, QueryValue] = {}
    if offset is not None:
        params["offset"] = offset
    if close:
        params["close"] = "true"
    return process_call(
        place,
        "POST",
        id,
        "write to",
        "/stdin",
        params=params,
        content=data,
        timeout_s=STDIN_TIMEOUT_S,
        repeatable=offset is not None or not data,
    )


def signal_process(place: Place, id: str, signal: str | int, *, tree: bool = False) -> Request:
    """A signal for a process. Not repeatable: some programs count."""
    if isinstance(signal, bool) or not isinstance(signal, str | int):
        raise InvalidArgument(f'a signal is a name such as "INT" or a number, not {signal!r}')
    number = int(signal) if isinstance(signal, int) else signal
    body: dict[str, Any] = {"signal": number}
    if tree:
        body["tree"] = True
    return process_call(place, "POST", id, "signal", "/signal", json=body)


def resize_process(place: Place, id: str, cols: int, rows: int) -> Request:
    """Another size for a process's terminal."""
    return process_call(
        place, "POST", id, "resize", "/resize", json={"cols": cols, "rows": rows}, repeatable=True
    )


def list_processes(place: Place, *, cursor: str | None = None) -> Request:
    """One page of the processes."""
    return Request(
        method="GET",
        url=f"{place.prefix}/processes",
        what=f"list the processes of session {place.session_id}",
        params={"cursor": cursor} if cursor else {},
        headers=place.headers,
        repeatable=True,
    )


def process_call(place: Place, method: str, id: str, verb: str, below: str = "", **rest: Any) -> Request:
    """Any call about one process."""
    return Request(
        method=method,
        url=f"{place.prefix}/processes/{segment(id, 'process id')}{below}",
        what=f"{verb} process {id} of session {place.session_id}",
        headers={**place.headers, "accept-encoding": "identity"},
        **rest,
    )


def processes_of(body: bytes, what: str) -> tuple[list[ProcessInfo], str | None]:
    """A page of processes, and the cursor of the next page."""
    value = object_of(body, what)
    items, cursor = value.get("processes"), value.get("next_cursor")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnexpectedAnswer(f"{what}: the answer has no processes")
    return [process_info(item, what) for item in items], cursor if isinstance(
        cursor, str
    ) and cursor else None


def process_info(value: Mapping[str, Any], what: str) -> ProcessInfo:
    """One process."""
    command, terminal = value.get("command"), value.get("pty")
    return ProcessInfo(
        id=text_of(value, "id", what),
        pid=optional_whole_of(value, "pid"),
        state=text_of(value, "state", what),
        command=tuple(map(str, command)) if isinstance(command, list) else (),
        shell=text_of(value, "shell"),
        cwd=text_of(value, "working_dir"),
        background=value.get("background") is True,
        terminal=_pair(terminal, "cols", "rows"),
        stdin_open=value.get("stdin") == "open",
        exit_code=optional_whole_of(value, "exit_code"),
        signal=text_of(value, "signal") or None,
        timed_out=value.get("timed_out") is True,
        error=text_of(value, "error"),
        started_at=time_of(value.get("started_at")),
        ended_at=time_of(value.get("ended_at")),
        duration_s=number_of(value, "duration"),
        kept={
            n: pair for n in ("stdout", "stderr") if (pair := _pair(value.get(n), "start", "end")) is not None
        },
        raw=value,
    )


def argv_of(command: str | Sequence[str]) -> tuple[str, ...]:
    """A command as results show it: a shell line is one word."""
    return (command,) if isinstance(command, str) else tuple(map(str, command))


def positive(name: str, seconds: float) -> float:
    """The number of seconds. Raises InvalidArgument unless it is one that can be waited."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds < 1e9:
        raise InvalidArgument(f"{name} must be a positive number of seconds, not {seconds!r}")
    return seconds


def _stdin(stdin: bool | bytes | str | None) -> dict[str, Any]:
    if stdin is True:
        return {"stdin": "open"}
    if stdin is None or stdin is False:
        return {}
    if not isinstance(stdin, str | bytes | bytearray | memoryview):
        raise InvalidArgument(f"stdin must be text or bytes, not {type(stdin).__name__}")
    data = stdin.encode("utf-8", "surrogatepass") if isinstance(stdin, str) else bytes(stdin)
    if len(data) > INPUT_BYTES_MAX:
        raise InvalidArgument(
            f"{len(data)} bytes are too many for stdin=, which takes {INPUT_BYTES_MAX}: start the process with "
            "stdin=True and write to it, or write a file and let the program read that"
        )
    return {"input_base64": base64.b64encode(data).decode("ascii")}


def _pair(value: object, first: str, second: str) -> tuple[int, int] | None:
    if not isinstance(value, dict):
        return None
    one, two = value.get(first), value.get(second)
    return (one, two) if isinstance(one, int) and isinstance(two, int) else None


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
