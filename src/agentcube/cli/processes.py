"""`shell`, `ps`, `attach` and `kill`: the processes of a session."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from agentcube.cli import terminal
from agentcube.cli.inputs import OutputOption, connect, is_terminal
from agentcube.cli.render import Output, as_json, table
from agentcube.sdk._core.errors import InvalidArgument

if TYPE_CHECKING:
    from agentcube.sdk._core.processes import ProcessInfo

SessionArgument = Annotated[str, typer.Argument(help="The session's id.")]
ProcessArgument = Annotated[str, typer.Argument(help="The process's id, as `ps` says it.")]


def shell(ctx: typer.Context, session: SessionArgument) -> int:
    """Open a terminal in a session: a login shell, bash where there is one. Ends with the shell's exit code.

    All keys go inside, Ctrl-C and Ctrl-Z too; `~.` after Enter is the way out when nothing else answers, and ends the
    shell. When the connection is lost it is made again, for half a minute.
    """
    if not (terminal.available and is_terminal(sys.stdin) and is_terminal(sys.stdout)):
        raise InvalidArgument(
            "a shell needs a terminal at both ends; for a script: exec SESSION -- bash -c '…'"
        )
    from agentcube.cli import programs
    from agentcube.cli.streams import run_until_told

    return run_until_told(programs.open_shell(ctx.obj, session))


def attach(ctx: typer.Context, session: SessionArgument, process: ProcessArgument) -> int:
    """Show the output of a process, from what is still kept of it on, and end with its exit code.

    Ctrl-C ends only the watching. A process with a terminal gets all keys, and `~.` after Enter ends the watching.
    """
    from agentcube.cli import programs
    from agentcube.cli.streams import run_until_told

    return run_until_told(programs.watch(ctx.obj, session, process))


def ps(ctx: typer.Context, session: SessionArgument, output: OutputOption = Output.TABLE) -> None:
    """List the processes of a session: those that run, and those that ended a while ago."""
    with connect(ctx) as cube:
        found = cube.sessions.sandbox(session).commands.list()
    if output is Output.JSON:
        as_json([info.raw for info in found])
        return
    table(
        ("ID", "PID", "STATE", "STARTED", "TERMINAL", "COMMAND"),
        (
            (
                info.id,
                info.pid,
                _state(info),
                info.started_at,
                "{}x{}".format(*info.terminal) if info.terminal else None,
                info.shell or " ".join(info.command),
            )
            for info in found
        ),
    )


def kill(
    ctx: typer.Context,
    session: SessionArgument,
    process: ProcessArgument,
    signal: Annotated[
        str, typer.Option("--signal", "-s", help="Its name or number: TERM, SIGINT, 9.")
    ] = "TERM",
    tree: Annotated[bool, typer.Option("--tree", help="To all that it started, too.")] = False,
) -> None:
    """Send a signal to a process's group."""
    with connect(ctx) as cube:
        commands = cube.sessions.sandbox(session).commands
        commands.attach(process).signal(int(signal) if signal.isdigit() else signal, tree=tree)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (shell, ps, attach, kill):
        app.command()(command)


def _state(info: ProcessInfo) -> str:
    if info.running:
        return "running"
    how = "timed out" if info.timed_out else info.signal or f"exit {info.exit_code}"
    return f"ended: {how}"
