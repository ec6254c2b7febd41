"""`cp`: one file between this machine and a session."""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from agentcube.cli.inputs import connect, open_input
from agentcube.cli.render import write_all
from agentcube.sdk._core.errors import InvalidArgument

if TYPE_CHECKING:
    from agentcube.sdk import AgentCube

# One letter is a drive of Windows; anything with a slash before the colon is a local path.
_REMOTE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]+):(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Remote:
    """A path in a session's workspace."""

    session: str
    path: str


def copy(
    ctx: typer.Context,
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="SESSION:PATH, a local file, or - for standard input.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="DST", help="SESSION:PATH, a local path, or - for standard output.")
    ],
) -> None:
    """Copy one file between this machine and a session, in either direction.

    A destination that ends in a slash, or is a local directory, takes the source's name. Permission bits go
    along into the session. A local path with a colon is written ./like:this.
    """
    there, here = _place(source), _place(target)
    with connect(ctx) as cube:
        if isinstance(there, Remote) and isinstance(here, str):
            _download(cube, there, here)
        elif isinstance(there, str) and isinstance(here, Remote):
            _upload(cube, there, here)
        else:
            raise InvalidArgument("one of SRC and DST must be SESSION:PATH, and the other local")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("cp")(copy)


def _place(text: str) -> Remote | str:
    match = _REMOTE.fullmatch(text)
    return Remote(match[1], match[2]) if match else text


def _upload(cube: AgentCube, source: str, target: Remote) -> None:
    path = target.path
    if path == "" or path.endswith("/"):
        if source == "-":
            raise InvalidArgument(f"{target.session}:{path} is a directory: give the file a name")
        path += Path(source).name
    if source == "-":
        cube.sessions.upload_file(target.session, sys.stdin.buffer, path)
        return
    with open_input(source) as file:
        mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777
        cube.sessions.upload_file(target.session, file, path, mode=f"{mode:04o}")


def _download(cube: AgentCube, source: Remote, target: str) -> None:
    name = PurePosixPath(source.path).name
    if not name or source.path.endswith("/"):
        raise InvalidArgument(f"{source.session}:{source.path} is a directory: name a file in it")
    if target == "-":
        for chunk in cube.sessions.stream_file(source.session, source.path):
            write_all(sys.stdout.buffer, chunk)
        sys.stdout.buffer.flush()
        return
    local = Path(target)
    cube.sessions.download_file(
        source.session, source.path, local / name if target.endswith(os.sep) or local.is_dir() else local
    )
