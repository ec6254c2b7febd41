"""`cp`: files and directories between this machine and a session."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

import typer

from agentcube.cli.inputs import connect
from agentcube.cli.progress import Meter
from agentcube.cli.render import notice, write_all
from agentcube.errors import FileNotFound
from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.results import Transfer

if TYPE_CHECKING:
    from agentcube.sdk._sync.files import Files

NAMED_MAX = 5  # of what was left out; the rest is counted

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
        str, typer.Argument(metavar="SRC", help="SESSION:PATH, a local path, or - for standard input.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="DST", help="SESSION:PATH, a local path, or - for standard output.")
    ],
) -> None:
    """Copy a file, or a directory with all that is in it, between this machine and a session, in either direction.

    A destination that ends in a slash, or is a directory, takes the source's name; SRC/. means what is in a directory,
    and not itself. Permissions go along. Files appear whole or not at all; a download that is cut off goes on where it
    stopped, an upload begins again. Links stay links, but those that lead out of a directory are left out on the way
    here. Large transfers show how far they are, in a terminal. A local path with a colon is written ./like:this.
    """
    there, here = _place(source), _place(target)
    with connect(ctx) as cube:
        if isinstance(there, Remote) and isinstance(here, str):
            _download(cube.sessions.sandbox(there.session).files, there.path, here)
        elif isinstance(there, str) and isinstance(here, Remote):
            _upload(cube.sessions.sandbox(here.session).files, there, here.path)
        else:
            raise InvalidArgument("one of SRC and DST must be SESSION:PATH, and the other local")


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("cp")(copy)


def _place(text: str) -> Remote | str:
    match = _REMOTE.fullmatch(text)
    return Remote(match[1], match[2]) if match else text


def _name(path: str) -> str:
    """The name that a copy of this takes; none for `.`, `..`, `dir/.` and the like, which name no entry."""
    last = path.rstrip("/").rpartition("/")[2]
    return "" if last in (".", "..") or path.endswith("/.") else last


def _upload(files: Files, source: str, target: str) -> None:
    if source == "-":
        if target == "" or target.endswith("/"):
            raise InvalidArgument(f"{target or 'the workspace'} is a directory: give the file a name")
        with Meter("standard input") as meter:
            files.upload(sys.stdin.buffer, target, progress=meter)
        return
    _check_readable(source)
    name = _name(source.replace(os.sep, "/"))
    if name:
        target = _into(files, target, name)
    with Meter(name or source) as meter:
        _report(files.upload(source, target or ".", progress=meter))


def _check_readable(path: str) -> None:
    try:
        os.stat(path)
    except OSError as exc:
        raise InvalidArgument(f"cannot read {path}: {exc.strerror}") from None
    if not os.access(path, os.R_OK):
        raise InvalidArgument(f"cannot read {path}: Permission denied")


def _into(files: Files, target: str, name: str) -> str:
    """The target itself, or the entry of that name in it when it is a directory."""
    if target and not target.endswith("/"):
        try:
            if not files.stat(target).is_dir:
                return target
        except FileNotFound:
            return target
    return str(PurePosixPath(target, name))


def _download(files: Files, source: str, target: str) -> None:
    path = source or "."
    if target == "-":
        if files.stat(path).is_dir:
            raise InvalidArgument(f"{path} is a directory: name a file in it, or a directory to copy it to")
        for chunk in files.stream(path):
            write_all(sys.stdout.buffer, chunk)
        sys.stdout.buffer.flush()
        return
    name = _name(path)
    local = Path(target)
    if name and (target.endswith(os.sep) or local.is_dir()):
        local /= name
    with Meter(name or path) as meter:
        _report(files.download(path, local, progress=meter))


def _report(done: Transfer) -> None:
    if done.left_out:
        more = len(done.left_out) - NAMED_MAX
        named = ", ".join(done.left_out[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
        notice(f"left out, being neither files nor directories nor links that stay inside: {named}")
