"""`/api/files` over HTTP, but for uploads: what lists, reads, changes and removes files."""

from __future__ import annotations

import json
import mimetypes
import re
import stat
from typing import Any
from urllib.parse import quote

from agentcube.picod.asked import Asked, encoded
from agentcube.picod.files.entries import Entry
from agentcube.picod.files.files import LIST_MAX, Files, OpenFile
from agentcube.picod.files.globs import Glob
from agentcube.picod.files.listing import Wanted, list_tree, parse_cursor
from agentcube.picod.files.trees import change_tree, remove_tree
from agentcube.picod.messages import Request, Response, http_date, rfc3339
from agentcube.picod.paths import DEPTH_MAX
from agentcube.picod.problems import Problem
from agentcube.picod.routing import Access, Route
from agentcube.picod.workers import Workers

PIECE_BYTES = 256 * 1024  # read in one go
_LISTING_FIELDS = ("recursive", "glob", "depth", "limit", "cursor")
_LARGE = 64 * 1024
_JSON = ((b"content-type", b"application/json"),)
_RANGE = re.compile(rb"bytes=([0-9]{0,18})-([0-9]{0,18})")


class FileRoutes:
    """The handlers."""

    def __init__(self, workers: Workers, files: Files) -> None:
        self._workers = workers
        self._files = files

    def rows(self) -> tuple[Route, ...]:
        """What is served here."""
        return (
            Route("GET", "/api/files", Access.SESSION, self.list),
            Route("GET", "/api/files/", Access.SESSION, self.download),
            Route("PATCH", "/api/files/", Access.SESSION, self.change),
            Route("DELETE", "/api/files/", Access.SESSION, self.remove),
        )

    # Listings

    async def list(self, request: Request, response: Response) -> None:
        """`GET /api/files?path=DIR`: as clients of the Go system know it, or in pages of whole trees."""
        query = request.query()
        if any(name in query for name in _LISTING_FIELDS):
            await self._list_tree(Asked(query, query=True), response)
            return
        body = await self._workers.do(self._listing, encoded(query.get("path", "")))
        if len(body) > _LARGE:
            await request.take(len(body))  # many clients may be slow to read theirs
        await response.whole(200, _JSON, body)

    def _listing(self, path: bytes) -> bytes:
        entries, more = self._files.list(path)
        members: dict[str, Any] = {"files": [_listed(entry) for entry in entries]}
        if more:
            members["truncated"] = True
        return json.dumps(members).encode("ascii")

    async def _list_tree(self, asked: Asked, response: Response) -> None:
        path, glob, cursor = asked.path("path", ""), asked.text("glob", None), asked.text("cursor", None)
        depth = asked.number("depth", 1, DEPTH_MAX, None)
        recursive = asked.flag("recursive", glob is not None or depth is not None)
        limit = asked.number("limit", 1, LIST_MAX, LIST_MAX)
        asked.done()
        wanted = Wanted(
            path=path,
            depth=1 if not recursive else DEPTH_MAX if depth is None else depth,
            glob=None if glob is None else Glob(glob),
            limit=limit,
            after=() if cursor is None else parse_cursor(cursor),
        )
        await self._workers.respond(list_tree(self._files, wanted), response, _JSON)

    # Changes

    async def change(self, request: Request, response: Response) -> None:
        """`PATCH /api/files/{path}`: permissions and time."""
        path = request.tail("/api/files/")
        asked = Asked(await request.json())
        mode, modified_ns = asked.mode("permissions", None), asked.time_ns("modified")
        recursive = asked.flag("recursive", False)
        asked.done()
        if mode is None and modified_ns is None:
            raise Problem("invalid", "give permissions or modified")
        if recursive:
            entry = await self._workers.finish(change_tree(self._files, path, mode, modified_ns))
        else:
            entry = await self._workers.do(self._files.change, path, mode, modified_ns)
        await response.json(entry.members())

    async def remove(self, request: Request, response: Response) -> None:
        """`DELETE /api/files/{path}`: a link itself, never what it leads to."""
        path = request.tail("/api/files/")
        asked = Asked(request.query(), query=True)
        recursive = asked.flag("recursive", False)
        asked.done()
        if not await self._workers.do(self._files.remove, path):
            if not recursive:
                raise Problem("not_empty", "the directory has something in it: ask for recursive=true")
            await self._workers.finish(remove_tree(self._files, path))
        await response.empty()

    # Downloads

    async def download(self, request: Request, response: Response) -> None:
        """`GET /api/files/{path}`, whole or one range of it."""
        path = request.tail("/api/files/")
        file = await self._workers.hold(self._files.open, path, release=OpenFile.close)
        try:
            await self._send(request, response, path, file)
        finally:
            self._workers.later(file.close)

    async def _send(self, request: Request, response: Response, path: bytes, file: OpenFile) -> None:
        modified = http_date(file.modified_ns // 1_000_000_000)
        headers: tuple[tuple[bytes, bytes], ...] = (
            (b"content-type", _content_type(path)),
            (b"content-disposition", _disposition(path)),
            (b"x-content-type-options", b"nosniff"),
            (b"accept-ranges", b"bytes"),
            (b"etag", file.etag.encode("ascii")),
            (b"last-modified", modified),
        )
        if _is_known(request.head.get(b"if-none-match"), file.etag.encode("ascii")):
            await response.empty(304, headers)
            return
        start, length, status = 0, file.size, 200
        wanted = _range(request, file, modified)
        if wanted is not None:
            start, length = wanted
            status = 206
            headers += ((b"content-range", b"bytes %d-%d/%d" % (start, start + length - 1, file.size)),)
        if not await response.begin(status, headers, length):
            return
        end = start + length
        while start < end:
            data = await self._workers.do(file.read, min(PIECE_BYTES, end - start), start)
            if not data:
                return  # it shrank meanwhile: the connection breaks off, which is what the client must see
            start += len(data)
            await response.write(data)


def _listed(entry: Entry) -> dict[str, Any]:
    mode = entry.found.st_mode
    return {
        "name": entry.path.decode("utf-8", "surrogateescape"),
        "size": entry.found.st_size,
        "modified": rfc3339(entry.modified),
        "mode": stat.filemode(mode),
        "is_dir": stat.S_ISDIR(mode),
    }


def _content_type(path: bytes) -> bytes:
    kind, encoding = mimetypes.guess_type(path.rpartition(b"/")[2].decode("utf-8", "replace"))
    if encoding is not None or kind is None:
        return b"application/octet-stream"
    return kind.encode("ascii") + (b"; charset=utf-8" if kind.startswith("text/") else b"")


def _disposition(path: bytes) -> bytes:
    """RFC 6266: an ASCII name for everybody, and the true one in UTF-8 beside it where these differ."""
    name = path.rstrip(b"/").rpartition(b"/")[2]
    plain = re.sub(rb'[^ -~]|["\\]', b"_", name)
    header = b'attachment; filename="' + plain + b'"'
    return header if plain == name else header + b"; filename*=UTF-8''" + quote(name, safe="").encode("ascii")


def _is_known(condition: bytes | None, etag: bytes) -> bool:
    """Whether an If-None-Match names this state of the file (RFC 9110 §13.1.2, weakly compared)."""
    if condition is None:
        return False
    tags = {tag.strip() for tag in condition.split(b",")}
    return b"*" in tags or etag in tags or b"W/" + etag in tags


def _range(request: Request, file: OpenFile, modified: bytes) -> tuple[int, int] | None:
    """Start and length of the one range that is asked for; None for the whole file (RFC 9110 §14.2).

    Raises:
        Problem: `range_not_satisfiable`.
    """
    match = _RANGE.fullmatch(request.head.get(b"range") or b"")
    if match is None or match.groups() == (b"", b""):
        return None  # none, several, or another unit: all of it is a right answer
    condition = request.head.get(b"if-range")
    if condition is not None and condition not in (file.etag.encode("ascii"), modified):
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), min(int(last), file.size - 1) if last else file.size - 1
        if last and int(last) < int(first):
            return None  # not a valid range, so as if there were none
    else:
        start, end = max(0, file.size - int(last)), file.size - 1
    if start > end:
        raise Problem(
            "range_not_satisfiable",
            f"the file has {file.size} bytes",
            headers=((b"content-range", b"bytes */%d" % file.size),),
        )
    return start, end - start + 1
