"""`/api/files` over HTTP: uploads and downloads that stream, with the file work in worker threads."""

from __future__ import annotations

import asyncio
import base64
import binascii
import mimetypes
import re
import stat
from concurrent.futures import Executor
from typing import Any, Callable, TypeVar
from urllib.parse import quote

from agentcube.picod.files import MODE_DEFAULT, Entry, Files, OpenFile, Part, parse_mode
from agentcube.picod.messages import Request, Response, http_date, rfc3339
from agentcube.picod.multipart import MultipartError, MultipartParser, PartEnd, PartHead, boundary_of
from agentcube.picod.problems import Problem

UPLOAD_BYTES_MAX = 64 << 30  # beyond any workspace: the quota is the limit that counts
PIECE_BYTES = 256 * 1024  # read or written in one go
_FIELD_BYTES_MAX = 8 * 1024
_FIELDS = frozenset(("path", "content", "mode"))
_RANGE = re.compile(rb"bytes=([0-9]{0,18})-([0-9]{0,18})")

T = TypeVar("T")


class FileRoutes:
    """The handlers. `pool` runs what may block on the disk."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Executor, files: Files) -> None:
        self._loop = loop
        self._pool = pool
        self._files = files

    async def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        return await self._loop.run_in_executor(self._pool, work, *arguments)

    async def list(self, request: Request, response: Response) -> None:
        """`GET /api/files?path=DIR`."""
        path = request.query().get("path", "")
        entries, more = await self._do(self._files.list, _encoded(path))
        members: dict[str, Any] = {"files": [_listed(entry) for entry in entries]}
        if more:
            members["truncated"] = True
        await response.json(members)

    # Uploads

    async def upload(self, request: Request, response: Response) -> None:
        """`POST /api/files`, JSON or multipart by its Content-Type."""
        try:
            boundary = boundary_of((request.head.get(b"content-type") or b"").decode("latin-1"))
            if boundary is None:
                entry = await self._from_json(await request.json())
            else:
                entry = await self._from_form(request, MultipartParser(boundary))
        except MultipartError as exc:
            raise Problem("invalid", str(exc)) from None
        await response.json(_stored(entry))

    async def _from_json(self, body: dict[str, Any]) -> Entry:
        unknown = sorted(set(body) - _FIELDS)
        if unknown:
            raise Problem("invalid", f"unknown field {unknown[0]!r}")
        path, mode, content = body.get("path"), body.get("mode"), body.get("content", "")
        if not isinstance(path, str) or not path:
            raise Problem("invalid", "path must be the file's path, a text")
        if mode is not None and not isinstance(mode, str):
            raise Problem("invalid", 'mode must be a text such as "0644"')
        if not isinstance(content, str):
            raise Problem("invalid", "content must be the file's bytes in base64")
        bits = parse_mode(mode) if mode else MODE_DEFAULT
        return await self._do(self._write_base64, _encoded(path), content, bits)

    def _write_base64(self, path: bytes, content: str, mode: int) -> Entry:
        try:
            data = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError):
            raise Problem("invalid", "content is no base64") from None
        return self._files.write(path, data, mode)

    async def _from_form(self, request: Request, parser: MultipartParser) -> Entry:
        """Stream the form's file to disk as it comes; its fields may stand before or behind it."""
        form = _Form()
        try:
            while True:
                data = await request.body()
                if not data:
                    break
                for event in parser.feed(data):
                    await self._on_event(form, event)
            if not parser.complete:
                raise MultipartError("the form ends before its closing boundary")
            if form.part is None:
                raise Problem("invalid", "the form has no field `file`")
            path = form.path()
            if path is None:
                raise Problem("invalid", "the form has no field `path`")
            mode = (
                parse_mode(form.fields["mode"].decode("utf-8", "replace"))
                if form.fields.get("mode")
                else None
            )
            await self._flush(form)
            return await self._do(self._files.finish, form.part, path, MODE_DEFAULT if mode is None else mode)
        finally:
            if form.part is not None:
                # Also when cancelled: a client that went away leaves nothing behind.
                self._pool.submit(form.part.discard)

    async def _on_event(self, form: _Form, event: PartHead | bytes | PartEnd) -> None:
        if isinstance(event, PartHead):
            form.open(event.name)
            if event.name == "file":
                form.part = await self._begin(form.path())
        elif isinstance(event, bytes):
            if form.name != "file":
                form.add_to_field(event)
                return
            form.size += len(event)
            form.waiting.append(event)
            form.waiting_size += len(event)
            if form.size > UPLOAD_BYTES_MAX:
                raise Problem("body_too_large", f"a file may have {UPLOAD_BYTES_MAX >> 30} GiB")
            if form.waiting_size >= PIECE_BYTES:
                await self._flush(form)

    async def _begin(self, path: bytes | None) -> Part:
        begun = self._pool.submit(self._files.begin, path)
        try:
            return await asyncio.wrap_future(begun, loop=self._loop)
        except asyncio.CancelledError:
            # The thread goes on; what it makes must not stay.
            begun.add_done_callback(
                lambda done: None if done.cancelled() or done.exception() else done.result().discard()
            )
            raise

    async def _flush(self, form: _Form) -> None:
        if form.part is not None and form.waiting:
            data = b"".join(form.waiting)
            form.waiting, form.waiting_size = [], 0
            await self._do(self._files.append, form.part, data)

    # Downloads

    async def download(self, request: Request, response: Response) -> None:
        """`GET /api/files/{path}`, whole or one range of it."""
        path = request.tail("/api/files/")
        file = await self._do(self._files.open, path)
        try:
            await self._send(request, response, path, file)
        finally:
            self._pool.submit(file.close)

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
            data = await self._do(file.read, min(PIECE_BYTES, end - start), start)
            if not data:
                return  # it shrank meanwhile: the connection breaks off, which is what the client must see
            start += len(data)
            await response.write(data)


class _Form:
    """What has come of a form. Only `file` streams; the other fields are short."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self.name = ""  # of the part that is coming in
        self.part: Part | None = None
        self.size = 0
        self.waiting: list[bytes] = []
        self.waiting_size = 0

    def open(self, name: str) -> None:
        if name in self.fields or (name == "file" and self.part is not None):
            raise MultipartError(f"the form has more than one field {name[:64]!r}")
        self.name = name
        if name != "file":
            self.fields[name] = b""

    def add_to_field(self, data: bytes) -> None:
        value = self.fields[self.name] + data
        if len(value) > _FIELD_BYTES_MAX:
            raise MultipartError(f"the field {self.name[:64]!r} is too long")
        self.fields[self.name] = value

    def path(self) -> bytes | None:
        return self.fields.get("path") or None


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Problem("invalid", "the path holds half of a surrogate pair") from None


def _listed(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.path,
        "size": entry.size,
        "modified": rfc3339(entry.modified),
        "mode": stat.filemode(entry.mode),
        "is_dir": stat.S_ISDIR(entry.mode),
    }


def _stored(entry: Entry) -> dict[str, Any]:
    return {
        "path": entry.path,
        "size": entry.size,
        "mode": stat.filemode(entry.mode),
        "modified": rfc3339(entry.modified),
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
