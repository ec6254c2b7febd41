"""`run` and `exec`: a program's input, output, signals and exit code pass through as they come."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agentcube.cli.inputs import NamespaceOption, NoStdinOption, pairs, read_text, seconds
from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.scripts import script
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE

CODE_BYTES_MAX = 8 * 1024 * 1024  # what a kernel takes

EnvOption = Annotated[
    list[str] | None, typer.Option("--env", "-e", metavar="KEY=VALUE", help="Environment variable.")
]
TtyOption = Annotated[
    bool | None,
    typer.Option(
        "--tty/--no-tty", "-t/-T", help="Give the program a terminal. Otherwise when both ends are one."
    ),
]
_TIMEOUT_HELP = 'Kill the program and all it started after this long: "90s".'


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
        str | None, typer.Option(help="Run in this session, with what earlier code there has defined.")
    ] = None,
    template: Annotated[
        str, typer.Option(help="CodeInterpreter to make the session of.")
    ] = BUILT_IN_INTERPRETER,
    namespace: NamespaceOption = BUILT_IN_NAMESPACE,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the session made for it, and say its id.")
    ] = False,
    png: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write charts there (a second one to FILE-2). Needs a kept session."
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option(parser=seconds, metavar="DURATION", show_default="1h", help=_TIMEOUT_HELP)
    ] = 3600.0,
    env: EnvOption = None,
    tty: TtyOption = None,
    no_stdin: NoStdinOption = False,
) -> int:
    """Run code in a sandbox, and end with its exit code.

    Without --session the code is a program of its own in a new session, with input, signals and exit code as of `exec`.
    In a session that stays (--session, --keep) it is a cell in the session's kernel: variables last from one call to
    the next, the value of the last expression is printed, and the text of what it displays; --png writes charts to
    files. Exit code 1: the code raised an exception; 124: the timeout struck. Ctrl-C interrupts the code, a second one
    also ends the kernel. A cell reads no standard input.
    """
    if (code is None) == (file is None):
        raise InvalidArgument("give the code, or -f FILE, and not both: agentcube run 'print(6 * 7)'")
    variables = pairs(env or [], "--env")
    in_kernel = keep or session is not None
    if in_kernel and variables:
        raise InvalidArgument(
            "--env is for a program of its own: in a session that stays, set variables in the code"
        )
    if png is not None and not in_kernel:
        raise InvalidArgument(
            "--png needs --session or --keep: elsewhere, save the chart to a file in the code"
        )
    source = code if code is not None else read_text(file or "", CODE_BYTES_MAX)
    from agentcube.cli import programs
    from agentcube.cli.streams import run_until_told

    made = programs.Made(template=template, namespace=namespace)
    if in_kernel:
        return run_until_told(
            programs.run_cell(ctx.obj, session or made, language.value, source, timeout, png)
        )
    if language is Language.PYTHON:
        variables = {"PYTHONUNBUFFERED": "1", **variables}  # so that output comes as it is written
    how = programs.How(env=variables, timeout_s=timeout, tty=tty, no_stdin=no_stdin or file == "-")
    return run_until_told(programs.run_script(ctx.obj, made, script(language.value, source), how, timeout))


def exec_(
    ctx: typer.Context,
    session: Annotated[str, typer.Argument(help="The session's id.")],
    argv: Annotated[list[str], typer.Argument(metavar="-- ARGV...", help="The program and its arguments.")],
    timeout: Annotated[
        float | None, typer.Option(parser=seconds, metavar="DURATION", help=_TIMEOUT_HELP)
    ] = None,
    env: EnvOption = None,
    working_dir: Annotated[
        str | None, typer.Option("--working-dir", "-w", help="Directory, relative to the workspace.")
    ] = None,
    tty: TtyOption = None,
    background: Annotated[
        bool, typer.Option("--background", "-b", help="Print the process's id and leave it running.")
    ] = False,
    no_stdin: NoStdinOption = False,
) -> int:
    """Run a program in a session, and end with its exit code. Options go before the session.

    Standard input, output and error pass through as they come, each on its own; in a terminal, all keys do (`~.` after
    Enter is the way out). Signals are forwarded: Ctrl-C interrupts the program, a second one kills it and all it
    started. Exit code 127 means that there is no such program, 124 that the timeout struck, 128+n signal n. No shell is
    involved: for one, write `-- sh -c '…'`. A program whose caller is gone ends half a minute later.
    """
    variables = pairs(env or [], "--env")
    program = argv[1:] if argv[0] == "--" else argv
    if background and tty:
        raise InvalidArgument("--background has no terminal: leave out --tty")

    from agentcube.cli import programs
    from agentcube.cli.streams import run_until_told

    how = programs.How(env=variables, cwd=working_dir, timeout_s=timeout, tty=tty, no_stdin=no_stdin)
    return run_until_told(
        (programs.start if background else programs.execute)(ctx.obj, session, program, how)
    )


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(run)
    app.command("exec", context_settings={"allow_interspersed_args": False, "ignore_unknown_options": False})(
        exec_
    )
