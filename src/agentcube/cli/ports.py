"""`ports`, `expose`, `withdraw` and `share`: what listens in a session, for its owner and for others."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from agentcube.cli.inputs import OutputOption, connect, seconds
from agentcube.cli.render import Output, as_json, line, table

SessionArgument = Annotated[str, typer.Argument(help="The session's id.")]
PortArgument = Annotated[int, typer.Argument(min=1, max=65535, help="The TCP port inside.")]


def ports(ctx: typer.Context, session: SessionArgument, output: OutputOption = Output.TABLE) -> None:
    """List the ports of a session that may be reached."""
    with connect(ctx) as cube:
        found = cube.sessions.ports(session).list()
    if output is Output.JSON:
        as_json([dataclasses.asdict(port) for port in found])
        return
    rows = ((p.port, p.name, "template" if p.declared else "exposed", p.api_url, p.url) for p in found)
    table(("PORT", "NAME", "BY", "FOR PROGRAMS", "OWN HOST"), rows)


def expose(
    ctx: typer.Context, session: SessionArgument, port: PortArgument, output: OutputOption = Output.TABLE
) -> None:
    """Let yourself reach a port of a session, and print its address.

    The address is for programs, which send the API key. For a browser, `share` the port. Nothing needs to listen yet.
    """
    with connect(ctx) as cube:
        exposed = cube.sessions.ports(session).expose(port)
    if output is Output.JSON:
        as_json(dataclasses.asdict(exposed))
    else:
        line(exposed.api_url)


def withdraw(ctx: typer.Context, session: SessionArgument, port: PortArgument) -> None:
    """Let a port be reached no longer, and end its share links."""
    with connect(ctx) as cube:
        cube.sessions.ports(session).withdraw(port)
        line(f"port {port} of session {session} withdrawn")


def share(
    ctx: typer.Context,
    session: SessionArgument,
    port: PortArgument,
    ttl: Annotated[
        float | None,
        typer.Option(
            parser=seconds, metavar="DURATION", help='How long the link is good: "1h" if not given.'
        ),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print a link with which a browser reaches a port of a session, exposing the port if it is not.

    Whoever has the link has the port, until it expires, the port is withdrawn, or the session ends.
    """
    with connect(ctx) as cube:
        link = cube.sessions.ports(session).share(port, ttl=ttl)
    if output is Output.JSON:
        as_json({"url": link.url, "port": link.port, "expires_at": link.expires_at})
    else:
        line(link.url)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    for command in (ports, expose, withdraw, share):
        app.command()(command)
