"""Requests to a sandbox in the form that the Go system has, and clients of it know: one call, one answer. Pure."""

from __future__ import annotations

import base64
import posixpath
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO
from urllib.parse import quote

from agentcube.sdk._core.errors import InvalidArgument
from agentcube.sdk._core.multipart import Upload
from agentcube.sdk._core.requests import (
    EXECUTE_GRACE_S,
    EXECUTE_TIMEOUT_S,
    Place,
    QueryValue,
    Request,
    duration,
    named,
)


def argv_of(command: str | Sequence[str]) -> list[str]:
    """The arguments of a command; a string is split as a POSIX shell would split it, and not expanded."""
    try:
        argv = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    except ValueError as exc:
        raise InvalidArgument(f"command {command!r}: {exc}") from None
    if not argv:
        raise InvalidArgument("the command is empty")
    return argv


def execute(
    place: Place,
    command: str | Sequence[str],
    *,
    timeout_s: float | None = None,
    stdin: bytes | str | None = None,
    env: Mapping[str, str] | None = None,
    working_dir: str | None = None,
    exact: bool = False,
) -> Request:
    """Execution of a command. `exact`: ask for the output's bytes instead of text."""
    limit = EXECUTE_TIMEOUT_S if timeout_s is None else timeout_s
    if not 0 < limit < 1e9:
        raise InvalidArgument(f"timeout must be a positive number of seconds, not {timeout_s!r}")
    argv = argv_of(command)
    body: dict[str, Any] = {"command": argv, "timeout": duration(limit)}
    if isinstance(stdin, str):
        body["stdin"] = stdin
    elif stdin is not None:
        body["stdin_base64"] = base64.b64encode(stdin).decode("ascii")
    if env:
        body["env"] = dict(env)
    if working_dir:
        body["working_dir"] = working_dir
    if exact:
        body["encoding"] = "base64"
    return Request(
        method="POST",
        url=f"{place.prefix}/execute",
        what=f"execute {argv[0]} in session {place.session_id}",
        json=body,
        headers=place.headers,
        timeout_s=limit + EXECUTE_GRACE_S,
    )


def write_file(place: Place, path: str, content: bytes, *, mode: str = "0644") -> Request:
    """Writing of a whole file from memory. Repeatable: it ends with the same content."""
    return Request(
        method="POST",
        url=f"{place.prefix}/files",
        what=f"write {named(path)} in session {place.session_id}",
        json={"path": path, "content": base64.b64encode(content).decode("ascii"), "mode": mode},
        headers=place.headers,
        timeout_s=EXECUTE_TIMEOUT_S,
        repeatable=True,
    )


def upload_file(place: Place, file: BinaryIO, path: str, *, mode: str = "0644") -> Request:
    """Streaming of an open file into the workspace. Repeatable where the file can be rewound."""
    upload = Upload(file, {"path": named(path), "mode": mode})
    return Request(
        method="POST",
        url=f"{place.prefix}/files",
        what=f"upload {path} to session {place.session_id}",
        upload=upload,
        headers=place.headers,
        timeout_s=EXECUTE_TIMEOUT_S,
        repeatable=upload.seekable,
    )


def download_file(place: Place, path: str) -> Request:
    """Reading of a file. The bytes are wanted as they are: no content coding."""
    inside = posixpath.normpath("/" + named(path)).lstrip("/")
    if not inside:
        raise InvalidArgument(f"{path!r} is the workspace itself, not a file")
    return Request(
        method="GET",
        url=f"{place.prefix}/files/{quote(inside, safe='/', errors='surrogateescape')}",
        what=f"download {path} from session {place.session_id}",
        headers={**place.headers, "accept-encoding": "identity"},
        timeout_s=EXECUTE_TIMEOUT_S,
        repeatable=True,
    )


def list_files(place: Place, path: str) -> Request:
    """Listing of a directory."""
    return Request(
        method="GET",
        url=f"{place.prefix}/files",
        what=f"list {named(path)} in session {place.session_id}",
        params={"path": path},
        headers=place.headers,
        repeatable=True,
    )


def read_logs(place: Place, *, stream: str = "both", tail_bytes: int | None = None) -> Request:
    """What the session's own command wrote and PicoD still holds."""
    if stream not in ("stdout", "stderr", "both"):
        raise InvalidArgument(f"stream is stdout, stderr or both, not {stream!r}")
    params: dict[str, QueryValue] = {"stream": stream}
    if tail_bytes is not None:
        if tail_bytes < 0:
            raise InvalidArgument(f"tail_bytes must not be negative: {tail_bytes}")
        params["tail_bytes"] = tail_bytes
    return Request(
        method="GET",
        url=f"{place.prefix}/logs",
        what=f"read the logs of session {place.session_id}",
        params=params,
        headers={**place.headers, "accept-encoding": "identity"},
        repeatable=True,
    )
