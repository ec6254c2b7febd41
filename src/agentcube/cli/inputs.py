"""What commands take: options with one meaning everywhere, standard input, files, and the client made of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, TextIO

import typer

from agentcube.cli.render import Output
from agentcube.durations import parse_duration
from agentcube.sdk._core.errors import InvalidArgument

if TYPE_CHECKING:
    from agentcube.sdk import AgentCube

MANIFEST_BYTES_MAX = 1024 * 1024

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Form of the output.")]
NamespaceOption = Annotated[str, typer.Option("--namespace", "-n", help="Namespace.")]
NoStdinOption = Annotated[
    bool, typer.Option("--no-stdin", help="Leave standard input unread, even when it is no terminal.")
]


@dataclass(frozen=True, slots=True)
class Target:
    """The server as given by the options before the command; None: to be found."""

    url: str | None = None
    api_key: str | None = None


def connect(ctx: typer.Context) -> AgentCube:
    """A client of the server that the options, the environment or the user's config name."""
    from agentcube.sdk import AgentCube  # the HTTP client is loaded only by commands that need it

    target: Target = ctx.obj
    return AgentCube(target.url, target.api_key)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a standard stream, which may not be there at all, is a terminal."""
    return stream is not None and not stream.closed and stream.isatty()


def seconds(given: str | float) -> float:
    """A duration of the command line: "90", "90s", "1h30m"; a default may be a number. Raises BadParameter."""
    text = str(given)
    try:
        value = float(text) if text.replace(".", "", 1).isdigit() else parse_duration(text)
    except ValueError as exc:
        raise typer.BadParameter(str(exc)) from None
    if not 0 < value < 1e9:
        raise typer.BadParameter(f"{text!r} must be more than nothing")
    return value


def pairs(items: list[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` options as a dict. Raises InvalidArgument."""
    found: dict[str, str] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"{option} {item!r}: write KEY=VALUE")
        found[key] = value
    return found


def open_input(path: str) -> BinaryIO:
    """A local file to read. Raises InvalidArgument, which names it."""
    try:
        if Path(path).is_dir():
            raise InvalidArgument(f"{path} is a directory, not a file")
        return Path(path).open("rb")
    except OSError as exc:
        raise InvalidArgument(f"cannot read {path}: {exc.strerror}") from None


def read_text(path: str, limit: int) -> str:
    """A text file, or standard input for `-`. Raises InvalidArgument."""
    if path == "-":
        data = sys.stdin.buffer.read(limit + 1)
    else:
        with open_input(path) as file:
            data = file.read(limit + 1)
    name = "standard input" if path == "-" else path
    if len(data) > limit:
        raise InvalidArgument(f"{name} is over {limit >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InvalidArgument(f"{name} is not UTF-8 text: {exc.reason} at byte {exc.start}") from None
