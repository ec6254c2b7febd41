"""`session …` and `logs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from agentcube.cli.inputs import NamespaceOption, OutputOption, connect, pairs, seconds
from agentcube.cli.render import Output, as_json, line, plain, table, write_bytes
from agentcube.sdk._core.events import PhaseChanged
from agentcube.sdk._core.results import SessionInfo, start_failure
from agentcube.wire.names import BUILT_IN_INTERPRETER, BUILT_IN_NAMESPACE, PLURALS

group = typer.Typer(name="session", help="Sessions of both kinds.", rich_markup_mode=None)

KindOption = Annotated[
    str, typer.Option(help="AgentRuntime or CodeInterpreter.", autocompletion=lambda: list(PLURALS))
]
MetadataOption = Annotated[
    list[str] | None, typer.Option("--metadata", "-m", metavar="KEY=VALUE", help="Metadata. Repeatable.")
]
SessionArgument = Annotated[str, typer.Argument(help="The session's id.")]
COLUMNS = ("ID", "KIND", "NAMESPACE", "NAME", "PHASE", "CREATED", "EXPIRES")


@group.command()
def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(help="The template's name.")] = BUILT_IN_INTERPRETER,
    kind: KindOption = "CodeInterpreter",
    namespace: NamespaceOption = BUILT_IN_NAMESPACE,
    ttl: Annotated[
        float | None, typer.Option(parser=seconds, metavar="DURATION", help='End it after this long: "8h".')
    ] = None,
    idle_timeout: Annotated[
        float | None, typer.Option(parser=seconds, metavar="DURATION", help="End it when idle for this long.")
    ] = None,
    suspend_after: Annotated[
        float | None,
        typer.Option(parser=seconds, metavar="DURATION", help="Let it sleep when idle for this long."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", "-e", metavar="KEY=VALUE", help="Environment variable. Repeatable."),
    ] = None,
    metadata: MetadataOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a session, wait until it is ready, and print its id."""
    with connect(ctx) as cube:
        made = cube.sessions.create(
            kind,
            name,
            namespace=namespace,
            ttl=ttl,
            idle_timeout=idle_timeout,
            suspend_after=suspend_after,
            env=pairs(env or [], "--env"),
            metadata=pairs(metadata or [], "--metadata"),
        )
    if made.phase == "Failed":
        raise start_failure(made)
    if output is Output.JSON:
        as_json(made.raw)
    else:
        line(made.id)


@group.command("list")
def list_sessions(
    ctx: typer.Context,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Only of this namespace.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only of this kind.", autocompletion=lambda: list(PLURALS))
    ] = None,
    phase: Annotated[str | None, typer.Option(help="Only in this phase.")] = None,
    metadata: MetadataOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List your sessions."""
    wanted = pairs(metadata or [], "--metadata")
    with connect(ctx) as cube:
        found = list(cube.sessions.list(namespace=namespace, kind=kind, phase=phase, metadata=wanted))
    print_sessions(found, output)


@group.command()
def show(ctx: typer.Context, session: SessionArgument, output: OutputOption = Output.TABLE) -> None:
    """Show everything about a session."""
    with connect(ctx) as cube:
        info = cube.sessions.get(session)
    if output is Output.JSON:
        as_json(info.raw)
    else:
        table(("FIELD", "VALUE"), _flat(info.raw))


@group.command()
def delete(
    ctx: typer.Context, sessions: Annotated[list[str], typer.Argument(help="Ids of sessions.")]
) -> None:
    """Delete sessions, with all that is in them."""
    with connect(ctx) as cube:
        for session in sessions:
            cube.sessions.delete(session)
            line(f"session {session} deleted")


@group.command()
def suspend(
    ctx: typer.Context, sessions: Annotated[list[str], typer.Argument(help="Ids of sessions.")]
) -> None:
    """Put sessions to sleep, with their state; a request wakes them."""
    with connect(ctx) as cube:
        for session in sessions:
            line(f"session {session} sleeps ({cube.sessions.suspend(session).sleep})")


@group.command()
def resume(
    ctx: typer.Context, sessions: Annotated[list[str], typer.Argument(help="Ids of sessions.")]
) -> None:
    """Wake sessions, as requests do."""
    with connect(ctx) as cube:
        for session in sessions:
            cube.sessions.resume(session)
            line(f"session {session} is awake")


@group.command()
def events(
    ctx: typer.Context,
    session: SessionArgument,
    all_known: Annotated[
        bool, typer.Option("--all", help="Begin with everything on record, not with the present.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print each phase that a session comes to, as it happens, until it is deleted."""
    with connect(ctx) as cube, cube.sessions.events(session, after=0 if all_known else None) as stream:
        for event in stream:
            if output is Output.JSON:
                line(json.dumps(asdict(event), default=str))
            else:
                line(event_line(event))
            sys.stdout.flush()


def event_line(event: PhaseChanged) -> str:
    """A phase change, for people."""
    at = event.at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if event.at else "-"
    why = plain(": ".join(filter(None, (event.reason, event.message))))
    gap = "   (changes before this one are not on record any more)" if event.missed else ""
    return f"{at}   {event.phase:<8}   {why}".rstrip() + gap


def logs(
    ctx: typer.Context,
    session: SessionArgument,
    stream: Annotated[
        str | None,
        typer.Option(help="Only `stdout` or `stderr`.", autocompletion=lambda: ["stdout", "stderr"]),
    ] = None,
    tail_bytes: Annotated[int | None, typer.Option(min=0, help="Only the last bytes of each.")] = None,
) -> None:
    """Print what the command of an AgentRuntime wrote, each stream on its own."""
    with connect(ctx) as cube:
        streams = [stream] if stream else ["stdout", "stderr"]
        said = {name: cube.sessions.logs(session, stream=name, tail_bytes=tail_bytes) for name in streams}
    write_bytes(said.get("stdout", b""), said.get("stderr", b""))


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(group)
    app.command()(logs)


def print_sessions(found: list[SessionInfo], output: Output) -> None:
    """Sessions, as a table or as a JSON list."""
    if output is Output.JSON:
        as_json([info.raw for info in found])
        return
    table(
        COLUMNS,
        ((s.id, s.kind, s.namespace, s.name, s.phase, s.created_at, s.expires_at) for s in found),
    )


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """The fields of an answer, nesting written with dots."""
    for key, value in fields.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if value != {} else None
