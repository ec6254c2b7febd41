"""`port-forward`: a local port that leads into a session."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from agentcube.cli.inputs import Target
from agentcube.cli.render import line
from agentcube.sdk._core.errors import InvalidArgument

if TYPE_CHECKING:
    from agentcube.sdk.forwarding import PortForward


def port_forward(
    ctx: typer.Context,
    session: Annotated[str, typer.Argument(help="The session's id.")],
    ports: Annotated[
        str,
        typer.Argument(metavar="[LOCAL:]PORT", help="The session's port, and the local one to listen on."),
    ],
    host: Annotated[str, typer.Option(help="Local address to listen on.")] = "127.0.0.1",
) -> int:
    """Carry connections to a local port into a session, whatever they speak, until Ctrl-C.

    For gRPC, databases and other protocols that are not HTTP/1.1. The port must be one that the session's template
    declares. Prints one line, `forwarding HOST:PORT`, once it listens; LOCAL 0 takes a free port. The default is the
    same number as the session's.
    """
    import asyncio

    from agentcube.sdk import AgentCube
    from agentcube.sdk._core.config import resolve
    from agentcube.sdk.forwarding import PortForward

    local, remote = _ports(ports)
    target: Target = ctx.obj
    servers = resolve(url=target.url, token=target.api_key)
    forward = PortForward(servers, session, remote, host=host, local_port=local)
    with AgentCube(target.url, target.api_key) as cube:
        cube.sessions.get(session)  # one clear error now is better than one with every connection
    asyncio.run(_until_interrupted(forward))
    return 0


async def _until_interrupted(forward: PortForward) -> None:
    import asyncio

    async with forward:
        line(f"forwarding {forward.address}")
        sys.stdout.flush()
        await asyncio.Event().wait()


def _ports(text: str) -> tuple[int, int]:
    """The local and the session's port. Raises InvalidArgument."""
    local, colon, remote = text.rpartition(":")
    numbers = [local, remote] if colon else [remote, remote]
    if not all(number.isascii() and number.isdecimal() and int(number) <= 65535 for number in numbers):
        raise InvalidArgument(f"{text!r}: write PORT or LOCAL:PORT, such as 50051 or 8000:50051")
    return int(numbers[0]), int(numbers[1])


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command("port-forward")(port_forward)
