"""`/api/files` over HTTP: uploads, in a form, in JSON or as they are. Bodies stream to the disk as they come."""

from __future__ import annotations

import base64
import binascii
import stat
from typing import Any, Callable

from agentcube.http1 import CHUNKED
from agentcube.picod.asked import Asked, encoded
from agentcube.picod.files.entries import Entry, parse_mode
from agentcube.picod.files.files import MODE_DEFAULT, Files, Upload
from agentcube.picod.files.uploads import Part
from agentcube.picod.messages import Request, Response, rfc3339
from agentcube.picod.multipart import MultipartError, MultipartParser, PartEnd, PartHead, boundary_of
from agentcube.picod.problems import Problem
from agentcube.picod.routing import Access, Route
from agentcube.picod.workers import Workers

UPLOAD_BYTES_MAX = 64 << 30  # beyond any workspace: the quota is the limit that counts
PIECE_BYTES = 256 * 1024  # written in one go
_FIELD_BYTES_MAX = 8 * 1024
_FIELDS = frozenset(("path", "content", "mode"))


class UploadRoutes:
    """The handlers."""

    def __init__(self, workers: Workers, files: Files) -> None:
        self._workers = workers
        self._files = files

    def rows(self) -> tuple[Route, ...]:
        """What is served here."""
        return (
            Route("POST", "/api/files", Access.SESSION, self.upload),
            Route("PUT", "/api/files/", Access.SESSION, self.put),
        )

    # Uploads in a form or in JSON

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
        return await self._workers.do(self._write_base64, encoded(path), content, bits)

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
            given = form.fields.get("mode")
            mode = parse_mode(given.decode("utf-8", "replace")) if given else MODE_DEFAULT
            await self._flush(form)
            return await self._workers.do(self._files.finish, form.part, form.begun, path, mode)
        finally:
            if form.part is not None:
                # Also when cancelled: a client that went away leaves nothing behind.
                self._workers.later(form.part.discard)

    async def _on_event(self, form: _Form, event: PartHead | bytes | PartEnd) -> None:
        if isinstance(event, PartHead):
            form.open(event.name)
            if event.name == "file":
                form.begun = form.path()
                form.part = await self._workers.hold(self._files.begin, form.begun, release=Part.discard)
        elif isinstance(event, bytes):
            if form.name != "file":
                form.add_to_field(event)
                return
            form.size += len(event)
            form.waiting.append(event)
            form.waiting_size += len(event)
            if form.size > UPLOAD_BYTES_MAX:
                raise _too_large()
            if form.waiting_size >= PIECE_BYTES:
                await self._flush(form)

    async def _flush(self, form: _Form) -> None:
        if form.part is not None and form.waiting:
            data = b"".join(form.waiting)
            form.waiting, form.waiting_size = [], 0
            await self._workers.do(self._files.add, form.part, data)

    # Uploads as they are

    async def put(self, request: Request, response: Response) -> None:
        """`PUT /api/files/{path}`: the body is the file, or what is appended to it."""
        path = request.tail("/api/files/")
        asked = Asked(request.query(), query=True)
        mode, parents = asked.mode("mode", MODE_DEFAULT), asked.flag("parents", True)
        append, exclusive = asked.flag("append", False), asked.flag("exclusive", False)
        offset = asked.number("offset", 0, (1 << 63) - 1, None)
        asked.done()
        if offset is not None and not append:
            raise Problem("invalid", "offset goes with append=true")
        if append:
            appending = await self._workers.hold(
                lambda: self._files.begin_append(
                    path,
                    mode,
                    parents=parents,
                    exclusive=exclusive,
                    offset=offset,
                    whole=None if request.head.body == CHUNKED else request.head.body,
                ),
                release=lambda made: made.discard(),
            )
            entry = await self._receive(
                request, appending, lambda: self._files.finish_append(appending, path)
            )
            await response.json(entry.members(), 201 if appending.made else 200)
        else:
            part = await self._workers.hold(
                lambda: self._files.begin_put(path, parents=parents, exclusive=exclusive),
                release=Part.discard,
            )
            entry = await self._receive(
                request, part, lambda: self._files.finish_put(part, path, mode, exclusive=exclusive)
            )
            await response.json(entry.members(), 200 if part.replaced else 201)

    async def _receive(self, request: Request, upload: Upload, finish: Callable[[], Entry]) -> Entry:
        """The body into `upload`, which is discarded in any case: after `finish` that removes nothing."""
        size = 0
        try:
            while True:
                data = await request.body()
                if not data:
                    return await self._workers.do(finish)
                size += len(data)
                if size > UPLOAD_BYTES_MAX:
                    raise _too_large()
                await self._workers.do(self._files.add, upload, data)
        finally:
            self._workers.later(upload.discard)


class _Form:
    """What has come of a form. Only `file` streams; the other fields are short."""

    def __init__(self) -> None:
        self.fields: dict[str, bytes] = {}
        self.name = ""  # of the part that is coming in
        self.part: Part | None = None
        self.begun: bytes | None = None  # the path that was known when the part began
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


def _too_large() -> Problem:
    return Problem("body_too_large", f"a file may have {UPLOAD_BYTES_MAX >> 30} GiB")


def _stored(entry: Entry) -> dict[str, Any]:
    return {
        "path": entry.path.decode("utf-8", "surrogateescape"),
        "size": entry.found.st_size,
        "mode": stat.filemode(entry.found.st_mode),
        "modified": rfc3339(entry.modified),
    }
