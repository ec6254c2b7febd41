"""Files of a session: what to ask, and where a reader of their changes stands. No I/O."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any
from urllib.parse import quote

from agentcube.sdk._core.errors import InvalidArgument, UnexpectedAnswer
from agentcube.sdk._core.events import FileChanged
from agentcube.sdk._core.requests import EXECUTE_TIMEOUT_S, Place, QueryValue, Request, named
from agentcube.sdk._core.results import FileInfo, file_info, object_of, text_of
from agentcube.sdk._core.sources import Source
from agentcube.sdk._core.tracks import SILENCE_S, Track

PAGE = 1000
CHANGES = ("create", "modify", "delete", "rename", "overflow", "end")


def get_file(
    place: Place, path: str, *, start: int = 0, end: int | None = None, etag: str | None = None
) -> Request:
    """The bytes of a file from `start` to before `end`. With `etag`, only of that version: else the answer has all."""
    headers = {**place.headers, "accept-encoding": "identity"}
    if start or end is not None:
        headers["range"] = f"bytes={start}-{'' if end is None else end - 1}"
        if etag is not None:
            headers["if-range"] = etag
    return _file(place, "GET", path, "read", headers=headers, repeatable=True)


def put_file(
    place: Place,
    path: str,
    *,
    content: bytes | None = None,
    upload: Source | None = None,
    mode: int | str | None = None,
    append: bool = False,
    offset: int | None = None,
    exclusive: bool = False,
    parents: bool = True,
) -> Request:
    """A whole file, or with `append` the end of one. Repeatable where that ends with the same content."""
    params: dict[str, QueryValue] = {}
    if mode is not None:
        params["mode"] = permissions(mode)
    for name, said in (("append", append), ("exclusive", exclusive)):
        if said:
            params[name] = "true"
    if offset is not None:
        params["offset"] = offset
    if not parents:
        params["parents"] = "false"
    headers = {**place.headers, "content-type": "application/octet-stream"}
    return _file(
        place,
        "PUT",
        path,
        "append to" if append else "write",
        params=params,
        headers=headers,
        content=content,
        upload=upload,
        repeatable=not append and not exclusive,
    )


def delete_file(place: Place, path: str, *, recursive: bool = False) -> Request:
    """Deletion of a file, a link itself, or a directory."""
    params: dict[str, QueryValue] = {"recursive": "true"} if recursive else {}
    return _file(place, "DELETE", path, "delete", params=params, repeatable=True)


def patch_file(
    place: Place,
    path: str,
    *,
    mode: int | str | None = None,
    modified: datetime | None = None,
    recursive: bool = False,
) -> Request:
    """Other permissions or times of a file."""
    body: dict[str, Any] = {}
    if mode is not None:
        body["permissions"] = permissions(mode)
    if modified is not None:
        if modified.tzinfo is None:
            raise InvalidArgument("modified must say its time zone, as datetime.now(timezone.utc) does")
        body["modified"] = modified.isoformat()
    if recursive:
        body["recursive"] = True
    return _file(place, "PATCH", path, "change", json=body, repeatable=True)


def list_directory(
    place: Place,
    path: str,
    *,
    recursive: bool = False,
    glob: str | None = None,
    depth: int | None = None,
    cursor: str | None = None,
) -> Request:
    """One page of the entries of a directory, or below it."""
    params: dict[str, QueryValue] = {"path": named(path), "limit": PAGE}
    if recursive:
        params["recursive"] = "true"
    if glob is not None:
        params["glob"] = named(glob)
    if depth is not None:
        params["depth"] = depth
    if cursor is not None:
        params["cursor"] = cursor
    return Request(
        method="GET",
        url=f"{place.prefix}/files",
        what=f"list {path} in session {place.session_id}",
        params=params,
        headers=place.headers,
        timeout_s=EXECUTE_TIMEOUT_S,
        repeatable=True,
    )


def entries_of(body: bytes, what: str) -> tuple[list[FileInfo], str | None]:
    """A page of entries, and the cursor of the next page."""
    value = object_of(body, what)
    items, cursor = value.get("files"), value.get("next_cursor")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise UnexpectedAnswer(f"{what}: the answer has no files")
    return [file_info(item) for item in items], cursor if isinstance(cursor, str) and cursor else None


def stat_file(place: Place, path: str, *, follow: bool = True) -> Request:
    """One entry."""
    params: dict[str, QueryValue] = {"path": named(path), "follow": "true" if follow else "false"}
    return fs_call(place, "GET", "stat", f"look at {path}", params=params, repeatable=True)


def make_directory(
    place: Place, path: str, *, parents: bool = True, exist_ok: bool = True, mode: int | str | None = None
) -> Request:
    """A directory. Repeatable where one that is there already is no error."""
    body: dict[str, Any] = {"path": named(path), "parents": parents, "exist_ok": exist_ok}
    if mode is not None:
        body["mode"] = permissions(mode)
    return fs_call(place, "POST", "mkdir", f"make directory {path}", json=body, repeatable=exist_ok)


def move_file(place: Place, source: str, destination: str, *, overwrite: bool) -> Request:
    """Another name for an entry. Not repeatable: the second time there is nothing to move."""
    body = {"source": named(source), "destination": named(destination), "overwrite": overwrite}
    return fs_call(place, "POST", "move", f"move {source} to {destination}", json=body)


def copy_file(place: Place, source: str, destination: str, *, recursive: bool, overwrite: bool) -> Request:
    """A copy of an entry."""
    body = {
        "source": named(source),
        "destination": named(destination),
        "recursive": recursive,
        "overwrite": overwrite,
    }
    return fs_call(
        place, "POST", "copy", f"copy {source} to {destination}", json=body, timeout_s=EXECUTE_TIMEOUT_S
    )


def watch_files(place: Place, path: str, *, recursive: bool) -> Request:
    """What happens to files, as events."""
    params: dict[str, QueryValue] = {"path": named(path), "recursive": "true" if recursive else "false"}
    return fs_call(place, "GET", "watch", f"watch {path}", params=params, repeatable=True)


def get_tree(place: Place, path: str) -> Request:
    """A directory as a tar stream."""
    params: dict[str, QueryValue] = {"path": named(path)}
    return fs_call(
        place, "GET", "tar", f"download {path}", params=params, timeout_s=EXECUTE_TIMEOUT_S, repeatable=True
    )


def put_tree(place: Place, path: str, upload: Source) -> Request:
    """A tar stream into a directory. Repeatable: it ends with the same files."""
    params: dict[str, QueryValue] = {"path": named(path)}
    return fs_call(
        place,
        "PUT",
        "tar",
        f"upload to {path}",
        params=params,
        upload=upload,
        timeout_s=EXECUTE_TIMEOUT_S,
        repeatable=True,
    )


def fs_call(place: Place, method: str, call: str, what: str, **rest: Any) -> Request:
    """Any call about names in the workspace."""
    return Request(
        method=method,
        url=f"{place.prefix}/fs/{call}",
        what=f"{what} in session {place.session_id}",
        headers={**place.headers, "accept-encoding": "identity"},
        **rest,
    )


def permissions(mode: int | str) -> str:
    """Permission bits in the wire's octal text: 0o644 and "0644" give "0644"."""
    try:
        bits = int(mode, 8) if isinstance(mode, str) else mode
    except ValueError:
        bits = -1
    if isinstance(mode, bool) or not isinstance(bits, int) or not 0 <= bits <= 0o7777:
        raise InvalidArgument(f"{mode!r} are no permissions: write them like 0o644 or '0644'")
    return f"{bits:04o}"


class WatchTrack(Track[FileChanged]):
    """Changes of files. What happens while the connection is lost is not known: then there is an "overflow"."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.what)
        self.ready = False
        self._request = request
        self._again = False

    @property
    def identified(self) -> bool:
        return self.ready

    def request(self, *, silence_s: float = SILENCE_S) -> Request:
        self._again = self.ready
        return self._request.waiting(silence_s)

    def _events(self, name: str, members: Mapping[str, Any]) -> Iterator[FileChanged]:
        if name == "ready":
            self.ready = True
            self.advance()
            yield FileChanged(kind="overflow" if self._again else "ready")
        elif name in CHANGES:
            self.advance()
            self.ended = name == "end"
            yield FileChanged(
                kind=name,
                path=text_of(members, "path"),
                is_dir=members.get("is_dir") is True,
                from_path=text_of(members, "from") or None,
            )


def _file(place: Place, method: str, path: str, verb: str, **rest: Any) -> Request:
    inside = posixpath.normpath(named(path).lstrip("/"))
    if inside == ".." or inside.startswith("../"):
        raise InvalidArgument(f"{path!r} leads out of the workspace")
    if inside == ".":
        raise InvalidArgument(f"{path!r} is the workspace itself, not a file in it")
    rest.setdefault("headers", place.headers)
    return Request(
        method=method,
        url=f"{place.prefix}/files/{quote(inside, safe='/', errors='surrogateescape')}",
        what=f"{verb} {path} in session {place.session_id}",
        timeout_s=EXECUTE_TIMEOUT_S,
        **rest,
    )
