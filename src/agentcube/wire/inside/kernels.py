"""Kernels of a session: bodies, events and calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from agentcube.wire.inside.call import (
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

TAG = "Inside a session: kernels"

Sequence = Annotated[int, Field(description="The event's number in its execution, from 1.", ge=1)]
Bundle = Annotated[
    dict[str, Any],
    Field(
        description="MIME bundle as Jupyter has them: text as text, JSON as values, all else base64.",
        examples=[{"text/plain": "42"}],
    ),
]
Metadata = Annotated[dict[str, Any], Field(description="By MIME type, as Jupyter has it.")]


class CreateKernel(Asked):
    """A kernel to make."""

    language: Literal["python", "bash"] = "python"
    working_dir: Annotated[str, Field(description="Relative to the workspace.")] = ""
    env: Environment = Field(default_factory=dict)


class KernelBody(Answered):
    """A kernel. `execution` is the one that runs; `reason` says why it is dead.

    `memory_bytes` comes with GET alone: measuring it takes as long as a good part of a start.
    """

    id: Annotated[str, Field(examples=["main"])]
    language: Literal["python", "bash"]
    implementation: Annotated[str, Field(examples=["ipython 9.18.1"])]
    state: Literal["starting", "idle", "busy", "dead"]
    execution: str | None
    execution_count: int
    pid: int | None
    created_at: Time
    last_active_at: Time
    reason: str | None = None
    memory_bytes: int | None = None


class KernelList(Answered):
    """The kernels of a session, at most 16."""

    kernels: list[KernelBody]


class ExecuteCell(Asked):
    """A cell to run."""

    code: Annotated[str, Field(description="At most 8 MiB.")]
    timeout: Annotated[Duration | None, Field(description="At most 24h; then the cell is interrupted.")] = (
        None
    )
    grace: Annotated[
        Duration, Field(description="How long it goes on without a client, who may come back.")
    ] = "0s"
    wait: Annotated[
        Duration, Field(description="How long it waits in line for a busy kernel; at most 10m.")
    ] = "0s"
    store_history: bool = True
    silent: Annotated[bool, Field(description="Nothing is shown or counted.")] = False
    create: Annotated[
        CreateKernel | None, Field(description="Make the kernel when it is absent or dead.")
    ] = None
    interrupt_grace: Annotated[
        Duration, Field(description="How long an interrupted cell may take before its kernel is killed.")
    ] = "5s"


class Interrupt(Asked):
    """Whom to interrupt: `execution`, or whatever runs."""

    execution: str | None = None
    grace: Annotated[Duration, Field(description="After this the kernel is killed.")] = "5s"


class CellStarted(Answered):
    """The first event."""

    event: Literal["start"]
    seq: Sequence
    execution: str
    kernel: str
    execution_count: int


class StreamEvent(Answered):
    """Output of the cell."""

    event: Literal["stdout", "stderr"]
    seq: Sequence
    text: str


class DisplayEvent(Answered):
    """Something is shown, or what was shown as `display_id` looks different now."""

    event: Literal["display_data", "update_display_data"]
    seq: Sequence
    data: Bundle
    metadata: Metadata
    display_id: str | None = None


class ResultEvent(Answered):
    """The value of the cell's last expression."""

    event: Literal["execute_result"]
    seq: Sequence
    data: Bundle
    metadata: Metadata
    display_id: str | None = None
    execution_count: int


class ErrorEvent(Answered):
    """The exception that ended the cell, as IPython words it, in plain text."""

    event: Literal["error"]
    seq: Sequence
    name: str
    value: str
    traceback: list[str]


class ClearEvent(Answered):
    """What was shown goes; with `wait`, once something new is shown."""

    event: Literal["clear_output"]
    seq: Sequence
    wait: bool


class CellEnded(Answered):
    """The last event. With `state_lost` the kernel's variables are gone; `reason` says why."""

    event: Literal["end"]
    seq: Sequence
    status: Literal["ok", "error", "interrupted", "timed_out", "kernel_died"]
    execution_count: int
    duration: Annotated[float, Field(description="Seconds.")]
    state_lost: bool
    exit_code: Annotated[int | None, Field(description="Of a bash cell.")] = None
    reason: str | None = None


class EventGap(Answered):
    """Events that are no longer kept, by their numbers."""

    event: Literal["gap"]
    from_: Annotated[int, Field(alias="from")]
    to: int


class MoreEvents(Answered):
    """The stream is over and the cell is not: ask again for what comes after this event, or after your last one."""

    event: Literal["more"]
    after: int


EVENTS: tuple[Any, ...] = (
    CellStarted,
    StreamEvent,
    DisplayEvent,
    ResultEvent,
    ErrorEvent,
    ClearEvent,
    CellEnded,
    EventGap,
    MoreEvents,
    Replaced,
    Ping,
)

CALLS = (
    Call(
        method="POST",
        path="/kernels",
        tag=TAG,
        summary="Create a kernel",
        description="With an id that the server makes. Answers when it takes cells.",
        body=CreateKernel,
        answers={201: KernelBody},
        problems=("invalid", "limit_exceeded"),
    ),
    Call(
        method="GET",
        path="/kernels",
        tag=TAG,
        summary="List kernels",
        description="Those that live, and the dead ones that nobody has deleted or made anew.",
        answers={200: KernelList},
    ),
    Call(
        method="PUT",
        path="/kernels/{kernel}",
        tag=TAG,
        summary="Create a kernel of that id",
        description="1 to 40 of a-z, 0-9 and `-`. 200: it was there, with the same language.",
        body=CreateKernel,
        answers={200: KernelBody, 201: KernelBody},
        problems=("invalid", "kernel_exists", "limit_exceeded"),
    ),
    Call(
        method="GET",
        path="/kernels/{kernel}",
        tag=TAG,
        summary="Get a kernel",
        description="What it runs now, how many cells it has run, and why it is dead where it is.",
        answers={200: KernelBody},
        problems=("kernel_not_found",),
    ),
    Call(
        method="POST",
        path="/kernels/{kernel}/execute",
        tag=TAG,
        summary="Run a cell",
        description="Its events as they happen. A client that leaves interrupts it, unless `grace` lets it come back.",
        headers=IDEMPOTENCY,
        body=ExecuteCell,
        events=EVENTS,
        problems=(
            "invalid",
            "kernel_not_found",
            "kernel_busy",
            "kernel_dead",
            "kernel_exists",
            "idempotency_conflict",
            "body_too_large",
        ),
    ),
    Call(
        method="GET",
        path="/kernels/{kernel}/executions/{execution}",
        tag=TAG,
        summary="Read the events of an execution",
        description="From the one after `after` on, which confirms all up to it. The newest reader has them. Those of "
        "the last 32 executions are kept for 10 minutes, within 8 MiB.",
        query=(Query("after", "The number of the last event that you have.", "0"),),
        events=EVENTS,
        problems=("invalid", "kernel_not_found"),
    ),
    Call(
        method="POST",
        path="/kernels/{kernel}/interrupt",
        tag=TAG,
        summary="Interrupt a kernel",
        description="KeyboardInterrupt in the cell that runs; answers when it has ended, or the kernel was killed. "
        "Needs no body.",
        body=Interrupt,
        answers={200: KernelBody},
        problems=("invalid", "kernel_not_found"),
    ),
    Call(
        method="POST",
        path="/kernels/{kernel}/restart",
        tag=TAG,
        summary="Restart a kernel",
        description="The same id, directory and environment; nothing else is left.",
        answers={200: KernelBody},
        problems=("kernel_not_found",),
    ),
    Call(
        method="DELETE",
        path="/kernels/{kernel}",
        tag=TAG,
        summary="Remove a kernel",
        description="With all processes that its cells left.",
        answers={204: None},
        problems=("kernel_not_found",),
    ),
)
