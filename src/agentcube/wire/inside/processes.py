"""Processes of a session: bodies, events and calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from agentcube.wire.inside.call import (
    BYTES,
    ENCODING,
    IDEMPOTENCY,
    Answered,
    Asked,
    Call,
    Duration,
    Environment,
    Ping,
    Query,
    Replaced,
    Time,
)

TAG = "Inside a session: processes"

Exit = Annotated[
    int,
    Field(
        description="128+n: ended by signal n; 124: the timeout struck; 127, 126: the program cannot be executed.",
        examples=[0],
    ),
]


class TerminalSize(Asked):
    """A terminal's size in characters."""

    cols: Annotated[int, Field(ge=1, le=4096)] = 80
    rows: Annotated[int, Field(ge=1, le=4096)] = 24


class NewSize(Asked):
    """A terminal's new size in characters; a side that is left out stays as it is."""

    cols: Annotated[int | None, Field(ge=1, le=4096)] = None
    rows: Annotated[int | None, Field(ge=1, le=4096)] = None


class StartProcess(Asked):
    """A process to start: exactly one of `command` and `shell`."""

    command: Annotated[list[str] | None, Field(description="Program and arguments, as they are.")] = None
    shell: Annotated[str | None, Field(description="A line for bash, or for sh where there is no bash.")] = (
        None
    )
    working_dir: Annotated[str, Field(description="Relative to the workspace.")] = ""
    env: Environment = Field(default_factory=dict)
    user: Annotated[
        str | int | None, Field(description="Only the sandbox's own user: everything runs as that.")
    ] = None
    stdin: Annotated[
        Literal["closed", "open"], Field(description="open: `…/stdin` takes input. A terminal's is open.")
    ] = "closed"
    input: Annotated[str | None, Field(description="Written to standard input, which is closed then.")] = None
    input_base64: Annotated[str | None, Field(description="As `input`, exact bytes; at most 24 MiB.")] = None
    pty: Annotated[
        TerminalSize | None, Field(description="With a terminal; all output is `stdout` then.")
    ] = None
    timeout: Annotated[
        Duration | None, Field(description="At most 24h; the whole process tree dies then.")
    ] = None
    background: Annotated[bool, Field(description="It outlives this call; the answer is the process.")] = (
        False
    )
    grace: Annotated[
        Duration,
        Field(
            description="How long it survives without its client, who may attach again; not for `background`."
        ),
    ] = "0s"


class Kept(Answered):
    """Which bytes of a stream can be had: from `start` to before `end`."""

    start: int
    end: int


class ProcessBody(Answered):
    """A process. `pid` is null when the program could not be executed. Long commands are shown cut short."""

    id: Annotated[str, Field(examples=["p-83da266fdb73f508"])]
    pid: int | None
    command: list[str] | None
    shell: str | None
    working_dir: str
    background: bool
    pty: TerminalSize | None
    state: Literal["running", "exited"]
    stdin: Literal["open", "closed"]
    exit_code: Exit | None
    signal: Annotated[str | None, Field(examples=["SIGKILL"])]
    timed_out: bool
    error: Annotated[str | None, Field(description="Why it ended so, where that is not its own doing.")] = (
        None
    )
    started_at: Time
    ended_at: Time | None
    duration: Annotated[float | None, Field(description="Seconds.")]
    stdout: Kept
    stderr: Kept


class ProcessList(Answered):
    """Processes in the order of their start; `next_cursor` where there are more."""

    processes: list[ProcessBody]
    next_cursor: str | None = None


class StdinTaken(Answered):
    """How many bytes the process has accepted in all. `blocked`: not all of these, because it does not read."""

    offset: int
    blocked: Literal[True] | None = None


class Signal(Asked):
    """A signal by name ("SIGINT", "INT") or number, for the program's group or, with `tree`, all descendants."""

    signal: str | int
    tree: bool = False


class ProcessStarted(Answered):
    """The first event."""

    event: Literal["start"]
    id: str
    pid: int | None
    started_at: Time


class OutputEvent(Answered):
    """Output from byte `offset` to before `end`; `data` or, with `encoding=base64`, `data_base64`."""

    event: Literal["stdout", "stderr"]
    offset: int
    end: int
    data: str | None = None
    data_base64: str | None = None


class OutputGap(Answered):
    """Bytes that were overwritten before they were read."""

    event: Literal["gap"]
    stream: Literal["stdout", "stderr"]
    from_: Annotated[int, Field(alias="from")]
    to: int


class ProcessExited(Answered):
    """The last event, after all output; `stdout` and `stderr` are where that ends."""

    event: Literal["exit"]
    exit_code: Exit
    signal: str | None
    timed_out: bool
    duration: float
    error: str | None = None
    stdout: int
    stderr: int


class MoreOutput(Answered):
    """The stream is over and the output is not: attach again, from these offsets or from where you are."""

    event: Literal["more"]
    stdout: int
    stderr: int


EVENTS: tuple[Any, ...] = (ProcessStarted, OutputEvent, OutputGap, ProcessExited, MoreOutput, Replaced, Ping)

CALLS = (
    Call(
        method="POST",
        path="/processes",
        tag=TAG,
        summary="Start a process",
        description="200: its events as they happen; it dies with this call, unless `grace` lets a client come back. "
        "201: a process in the `background`, which goes on; asked for again by its key, 200 and the process.",
        query=(ENCODING,),
        headers=IDEMPOTENCY,
        body=StartProcess,
        answers={201: ProcessBody},
        events=EVENTS,
        problems=("invalid", "idempotency_conflict", "body_too_large", "limit_exceeded"),
    ),
    Call(
        method="GET",
        path="/processes",
        tag=TAG,
        summary="List processes",
        description="Those that run, and the last 512 that ended.",
        query=(
            Query("limit", "At most so many.", "1000"),
            Query("cursor", "`next_cursor` of the page before."),
        ),
        answers={200: ProcessList},
    ),
    Call(
        method="GET",
        path="/processes/{process}",
        tag=TAG,
        summary="Get a process",
        description="What it is, whether it runs, how it ended, and how much of its output is still kept.",
        answers={200: ProcessBody},
        problems=("process_not_found",),
    ),
    Call(
        method="GET",
        path="/processes/{process}/output",
        tag=TAG,
        summary="Read a process's output",
        description="Events from these offsets on. A background process has any number of readers; another has one, "
        "the newest, whose offsets confirm what came before them.",
        query=(
            Query("stdout", "The first byte that is wanted.", "what is kept"),
            Query("stderr", "The first byte that is wanted.", "what is kept"),
            Query("follow", "false: only what there is.", "true"),
            ENCODING,
        ),
        events=EVENTS,
        problems=("invalid", "process_not_found"),
    ),
    Call(
        method="GET",
        path="/processes/{process}/wait",
        tag=TAG,
        summary="Wait for a process",
        description="Answers once it has ended, or after `timeout`; `state` tells which.",
        query=(Query("timeout", "At most 30m.", "30s"),),
        answers={200: ProcessBody},
        problems=("invalid", "process_not_found"),
    ),
    Call(
        method="POST",
        path="/processes/{process}/stdin",
        tag=TAG,
        summary="Write to a process",
        description="The body goes to its standard input. With `offset`, what was accepted before is skipped, so that "
        "a lost call can be repeated. Waits up to 30 s for a program that does not read.",
        query=(
            Query("offset", "Where this body begins, counted from the first byte ever written."),
            Query("close", "true: the input ends with this. To a terminal, end of file is typed.", "false"),
        ),
        body=BYTES,
        answers={200: StdinTaken},
        problems=("invalid", "process_not_found", "stdin_closed", "process_ended"),
    ),
    Call(
        method="POST",
        path="/processes/{process}/signal",
        tag=TAG,
        summary="Send a signal",
        description="To the program's process group; with `tree` to everything that it started.",
        body=Signal,
        answers={200: ProcessBody},
        problems=("invalid", "process_not_found", "process_ended"),
    ),
    Call(
        method="POST",
        path="/processes/{process}/resize",
        tag=TAG,
        summary="Resize a process's terminal",
        description="The program hears of it by SIGWINCH.",
        body=NewSize,
        answers={200: ProcessBody},
        problems=("invalid", "process_not_found", "not_a_terminal", "process_ended"),
    ),
    Call(
        method="DELETE",
        path="/processes/{process}",
        tag=TAG,
        summary="End and forget a process",
        description="The whole tree is dead when this answers.",
        answers={204: None},
        problems=("process_not_found",),
    ),
)
