"""Single calls into a session, as the Go system has them: bodies and calls."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from agentcube.wire.inside.call import Answered, Asked, Call, Duration, Environment, Query, Time

TAG = "Inside a session: commands"


class Execute(Asked):
    """A command to run to its end."""

    command: Annotated[list[str], Field(description="Program and arguments, as they are.", min_length=1)]
    timeout: Annotated[
        Duration | None, Field(description="At most 24h; then the whole process tree is dead.")
    ] = "60s"
    working_dir: Annotated[str, Field(description="Relative to the workspace.")] = ""
    env: Environment = Field(default_factory=dict)
    stdin: str | None = None
    stdin_base64: Annotated[str | None, Field(description="As `stdin`, exact bytes.")] = None
    encoding: Annotated[Literal["utf-8", "base64"], Field(description="Of the output.")] = "utf-8"


class Executed(Answered):
    """A command that has ended: the first 8 MiB of each stream, as text or, when asked for, base64."""

    stdout: str | None = None
    stderr: str | None = None
    stdout_base64: str | None = None
    stderr_base64: str | None = None
    stdout_truncated: bool
    stderr_truncated: bool
    exit_code: Annotated[
        int, Field(description="124: timeout; 127: no such program; 128+n: ended by signal n.")
    ]
    signal: str | None = None
    duration: Annotated[float, Field(description="Seconds.")]
    start_time: Time
    end_time: Time


CALLS = (
    Call(
        method="POST",
        path="/execute",
        tag=TAG,
        summary="Run a command",
        description="Waits for its end. A fresh process, which dies with its call; for more there are processes.",
        body=Execute,
        answers={200: Executed},
        problems=("invalid", "limit_exceeded", "body_too_large"),
    ),
    Call(
        method="GET",
        path="/logs",
        tag=TAG,
        summary="Read an agent's output",
        description="What the command of an AgentRuntime wrote last, up to 1 MiB per stream.",
        query=(
            Query("stream", "stdout, stderr or both.", "both"),
            Query("tail_bytes", "Only so many, the last ones."),
        ),
        answers={200: "text/plain"},
        problems=("invalid", "no_command"),
    ),
)
