"""`run` and `exec`: a program's input, output and exit code pass through unchanged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from agentcube.cli.inputs import (
    STDIN_BYTES_MAX,
    NamespaceOption,
    NoStdinOption,
    connect,
    pairs,
    piped_stdin,
    read_text,
    seconds,
)
from agentcube.cli.render import notice, write_bytes
from agentcube.errors import AgentCubeError
from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.results import CommandResult
from agentcube.sdk._core.scripts import script
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE

if TYPE_CHECKING:
    from agentcube.sdk import AgentCube

STARTING_S = 300.0  # of a session's life, beside what its command may take
FORGOTTEN_S = 60.0  # a session made for one command ends when that command is no more
EXIT_CODES = 256

TimeoutOption = Annotated[
    float,
    typer.Option(
        parser=seconds, metavar="DURATION", help='Kill the program and all it started after this long: "90s".'
    ),
]
EnvOption = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="Environment variable.")
]


class Language(StrEnum):
    """Languages of `run`."""

    PYTHON = "python"
    BASH = "bash"


def run(
    ctx: typer.Context,
    code: Annotated[str | None, typer.Argument(help="The code itself.")] = None,
    file: Annotated[
        str | None, typer.Option("--file", "-f", help="Read the code from this file, or from `-`.")
    ] = None,
    language: Annotated[Language, typer.Option(help="What the code is written in.")] = Language.PYTHON,
    session: Annotated[
        str | None, typer.Option(help="Run in this session, instead of one made for it.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="CodeInterpreter to make the session of.")
    ] = BUILT_IN_INTERPRETER,
    namespace: NamespaceOption = BUILT_IN_NAMESPACE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the session made for it, and say its id.")
    ] = False,
    timeout: TimeoutOption = 3600.0,
    env: EnvOption = None,
    no_stdin: NoStdinOption = False,
) -> int:
    """Run code in a sandbox, and end with its exit code.

    Standard input is passed on when it is no terminal. Exit code 124 means that the timeout struck. The output comes
    when the program has ended; of each stream its first 8 MiB are kept, and what was cut is said. Ctrl-C ends the
    program, and the session made for it.
    """
    if (code is None) == (file is None):
        raise InvalidArgument("give the code, or -f FILE, and not both: agentcube run 'print(6 * 7)'")
    variables = pairs(env or [], "--env")
    source = code if code is not None else read_text(file or "", STDIN_BYTES_MAX)
    stdin = piped_stdin(no_stdin or file == "-")
    made = script(language.value, source)
    with connect(ctx) as cube, _session(cube, session, template, namespace, keep, timeout) as id:
        cube.sessions.write_file(id, made.path, made.source)
        result = cube.sessions.exec(id, made.command, timeout=timeout, stdin=stdin, env=variables)
        exit_code = _passed_on(result)
        if session or keep:
            with contextlib.suppress(
                AgentCubeError
            ):  # the program has run; a script left behind is no failure
                cube.sessions.exec(id, ["rm", "-f", made.path])
    return exit_code


def exec_(
    ctx: typer.Context,
    session: Annotated[str, typer.Argument(help="The session's id.")],
    argv: Annotated[list[str], typer.Argument(metavar="-- ARGV...", help="The program and its arguments.")],
    timeout: TimeoutOption = 3600.0,
    env: EnvOption = None,
    working_dir: Annotated[
        str | None, typer.Option("--working-dir", "-w", help="Directory, relative to the workspace.")
    ] = None,
    no_stdin: NoStdinOption = False,
) -> int:
    """Run a program in a session, and end with its exit code. Options go before the session.

    Standard input is passed on when it is no terminal. Exit code 127 means that there is no such program, 124 that
    the timeout struck. No shell is involved: for one, write `-- sh -c '…'`. The output comes when the program has
    ended; of each stream its first 8 MiB are kept, and what was cut is said. Ctrl-C ends the program, not the session.
    """
    variables = pairs(env or [], "--env")
    stdin = piped_stdin(no_stdin)
    program = argv[1:] if argv[0] == "--" else argv
    with connect(ctx) as cube:
        result = cube.sessions.exec(
            session, program, timeout=timeout, stdin=stdin, env=variables, working_dir=working_dir
        )
    return _passed_on(result)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(run)
    app.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})(
        exec_
    )


@contextlib.contextmanager
def _session(
    cube: AgentCube, given: str | None, template: str, namespace: str, keep: bool, timeout_s: float
) -> Iterator[str]:
    """The session to run in: the given one, or a new one that is deleted afterwards unless it is to be kept."""
    if given:
        yield given
        return
    # Should this process be killed, the session does not outlive what it was made for by much.
    ttl, idle_timeout = (None, None) if keep else (timeout_s + STARTING_S, FORGOTTEN_S)
    id = cube.sessions.create(
        "CodeInterpreter", template, namespace=namespace, ttl=ttl, idle_timeout=idle_timeout
    ).id
    if keep:
        notice(f"session {id}")
    try:
        yield id
    finally:
        if not keep:
            try:
                cube.sessions.delete(id, missing_ok=True)
            except AgentCubeError as exc:
                notice(f"session {id} is left to its time limit: {exc.detail}")


def _passed_on(result: CommandResult) -> int:
    write_bytes(result.stdout_bytes, result.stderr_bytes)
    cut = [name for name in ("stdout", "stderr") if getattr(result, f"{name}_truncated")]
    if cut:
        notice(
            f"{' and '.join(cut)} truncated: the server keeps a bounded amount; write to a file and use `cp`"
        )
    return result.exit_code % EXIT_CODES
