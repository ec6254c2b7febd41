"""Files of a session: whole ones, pieces of large ones, directories, and what happens to them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import BinaryIO, Self, cast

from agentcube.errors import AgentCubeError, Conflict, FileNotFound, RangeNotSatisfiable
from agentcube.sdk._async._connection import AsyncConnection
from agentcube.sdk._async._primitives import in_thread, sleep
from agentcube.sdk._async._stream import AsyncEventStream
from agentcube.sdk._async.file import AsyncFileReader, AsyncFileWriter
from agentcube.sdk._core import fs, results
from agentcube.sdk._core.errors import ConnectFailed, ConnectionLost, InvalidArgument, TimedOut
from agentcube.sdk._core.events import FileChanged
from agentcube.sdk._core.localfile import PartFile, is_directory, open_local
from agentcube.sdk._core.processes import GRACE_S
from agentcube.sdk._core.requests import Place, Request
from agentcube.sdk._core.results import FileInfo, Transfer
from agentcube.sdk._core.retry import Patience, Policy
from agentcube.sdk._core.sources import FileSource, PieceSource, Progress, Source
from agentcube.sdk._core.tar_source import TarSource
from agentcube.sdk._core.tar_target import TarTarget

Content = bytes | bytearray | memoryview | str | BinaryIO | Iterable[bytes]
"""What can be written: bytes, text (as UTF-8), an open binary file from where it stands, or pieces of bytes."""


class AsyncWatch(AsyncEventStream[FileChanged]):
    """Changes of files, as they happen. From entering the block on, or from the event "ready" on, all are seen."""

    async def __aenter__(self) -> Self:
        await anext(self)
        return self


class AsyncFiles:
    """`files` of a sandbox. Paths are relative to the workspace; absolute ones begin there too, and nothing leads out.

    A path that does not exist is FileNotFound. Permissions are written like 0o644 or "0644".
    """

    def __init__(self, connection: AsyncConnection, place: Place) -> None:
        self._connection = connection
        self._place = place

    # Whole files

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        """A file's bytes, all in memory; or `length` of them from `offset`."""
        pieces = self.stream(path, offset=offset, length=length)
        return b"".join([piece async for piece in pieces])

    async def read_text(self, path: str, *, encoding: str = "utf-8") -> str:
        """A file as text. Raises UnicodeDecodeError."""
        return (await self.read(path)).decode(encoding)

    async def write(
        self,
        path: str,
        content: Content,
        *,
        mode: int | str | None = None,
        exclusive: bool = False,
        parents: bool = True,
    ) -> FileInfo:
        """Write a whole file, of any size. It appears whole or not at all, in the place of one of that name.

        `exclusive`: raise FileExists when there is one. `parents`: make missing directories.
        """
        return await self._put(path, content, mode=mode, exclusive=exclusive, parents=parents)

    async def append(self, path: str, content: Content, *, offset: int | None = None) -> FileInfo:
        """Add to the end of a file, which is made when there is none.

        With `offset` the file must have exactly so many bytes before; else Conflict is raised. When the connection is
        lost, ConnectionLost is raised, and whether it was added is not known; with `offset` it is safe to try again.
        """
        return await self._put(path, content, append=True, offset=offset)

    # Pieces of large ones

    async def stream(
        self, path: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[bytes, None]:
        """A file's bytes, as they arrive. A lost connection is made again, and they go on where they stopped.

        Raises Conflict when the file was changed meanwhile.
        """
        end = None if length is None else offset + max(0, length)
        position, version, patience = offset, None, Patience(GRACE_S)
        while position != end:
            request = fs.get_file(self._place, path, start=position, end=end, etag=version)
            try:
                async with self._connection.stream(request) as response:
                    if position > offset and response.status_code != 206:
                        raise Conflict(f"{request.what}: the file was changed while it was read")
                    version = response.headers.get("etag")
                    async with aclosing(self._connection.body(response, request)) as pieces:
                        async for piece in pieces:
                            position += len(piece)
                            patience.renew()
                            yield piece
                return
            except RangeNotSatisfiable:
                return  # there is nothing from there on
            except (ConnectionLost, ConnectFailed, TimedOut) as exc:
                await sleep(_delay(patience, exc, begun=position > offset))

    async def reader(self, path: str) -> AsyncFileReader:
        """A file, open for reading and seeking, in constant memory."""
        info = await self.stat(path)
        return AsyncFileReader(lambda position: self.stream(path, offset=position), info.size)

    def writer(
        self, path: str, *, mode: int | str | None = None, append: bool = False, exclusive: bool = False
    ) -> AsyncFileWriter:
        """A file, open for writing: a block that writes to it, and sends it when it ends well."""

        async def send(file: BinaryIO) -> FileInfo:
            return await self._put(path, file, mode=mode, append=append, exclusive=exclusive)

        return AsyncFileWriter(send)

    async def upload(
        self, local: str | os.PathLike[str] | BinaryIO, path: str, *, progress: Progress | None = None
    ) -> Transfer:
        """Copy a local file, directory or open binary file to the workspace, permissions included.

        A directory's content goes into directory `path`, which is made when there is none. Raises OSError.
        """
        if not isinstance(local, str | os.PathLike):
            info = await self._put(path, FileSource(local, progress))
            return Transfer(files=1, size=info.size)
        if is_directory(local):
            return await self._upload_tree(local, path, progress)
        with open_local(local) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o777
            info = await self._put(path, FileSource(file, progress), mode=mode)
        return Transfer(files=1, size=info.size)

    async def download(
        self, path: str, local: str | os.PathLike[str], *, progress: Progress | None = None
    ) -> Transfer:
        """Copy a file or directory of the workspace to this machine.

        A file appears whole or not at all. A directory's content goes into directory `local`, which is made when there
        is none; nothing is written outside it, whatever the sandbox sends. Raises OSError.
        """
        info = await self.stat(path)
        if info.is_dir:
            return await self._download_tree(path, local, progress)
        done = 0
        with PartFile(local) as part:
            async with aclosing(self.stream(path)) as pieces:
                async for piece in pieces:
                    part.write(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, info.size)
        return Transfer(files=1, size=done)

    # Directories and names

    async def list(
        self, path: str = ".", *, recursive: bool = False, glob: str | None = None, depth: int | None = None
    ) -> Sequence[FileInfo]:
        """The entries of a directory; with `recursive` all below it, at most `depth` levels; only those of a `glob`."""
        return [entry async for entry in self.scan(path, recursive=recursive, glob=glob, depth=depth)]

    async def glob(self, pattern: str, *, path: str = ".") -> Sequence[FileInfo]:
        """The entries below a directory whose path matches, such as "**/*.py"."""
        return await self.list(path, recursive=True, glob=pattern)

    async def scan(
        self, path: str = ".", *, recursive: bool = False, glob: str | None = None, depth: int | None = None
    ) -> AsyncIterator[FileInfo]:
        """As `list`, fetched a page at a time while it is iterated over."""
        cursor: str | None = None
        while True:
            request = fs.list_directory(
                self._place, path, recursive=recursive, glob=glob, depth=depth, cursor=cursor
            )
            response = await self._connection.send(request)
            entries, cursor = fs.entries_of(response.content, request.what)
            for entry in entries:
                yield entry
            if cursor is None:
                return

    async def stat(self, path: str, *, follow: bool = True) -> FileInfo:
        """What there is at a path; with `follow` what a link leads to."""
        return await self._info(fs.stat_file(self._place, path, follow=follow))

    async def exists(self, path: str) -> bool:
        """Whether there is anything at a path. A link that leads nowhere is something."""
        try:
            await self.stat(path, follow=False)
        except FileNotFound:
            return False
        return True

    async def mkdir(
        self, path: str, *, parents: bool = True, exist_ok: bool = True, mode: int | str | None = None
    ) -> FileInfo:
        """Make a directory. Raises FileExists when something else has that name, or with `exist_ok` False anything."""
        return await self._info(
            fs.make_directory(self._place, path, parents=parents, exist_ok=exist_ok, mode=mode)
        )

    async def move(self, source: str, destination: str, *, overwrite: bool = False) -> FileInfo:
        """Give an entry another name. Raises FileExists when that is taken, unless `overwrite`."""
        return await self._info(fs.move_file(self._place, source, destination, overwrite=overwrite))

    async def copy(
        self, source: str, destination: str, *, recursive: bool = True, overwrite: bool = False
    ) -> FileInfo:
        """Copy a file, a link, or a directory with all that is in it. Raises FileExists, unless `overwrite`."""
        return await self._info(
            fs.copy_file(self._place, source, destination, recursive=recursive, overwrite=overwrite)
        )

    async def delete(self, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Delete a file, a link (never what it leads to), or a directory. Raises NotEmpty, unless `recursive`."""
        try:
            await self._connection.send(fs.delete_file(self._place, path, recursive=recursive))
        except FileNotFound:
            if not missing_ok:
                raise

    async def chmod(self, path: str, mode: int | str, *, recursive: bool = False) -> FileInfo:
        """Set the permissions of an entry; with `recursive` of all below it, too."""
        return await self._info(fs.patch_file(self._place, path, mode=mode, recursive=recursive))

    async def utime(self, path: str, modified: datetime) -> FileInfo:
        """Set the time when an entry was last modified."""
        return await self._info(fs.patch_file(self._place, path, modified=modified))

    def watch(self, path: str = ".", *, recursive: bool = False) -> AsyncWatch:
        """What happens to the entries of a directory; with `recursive` to all below it. Use it as a block."""
        request = fs.watch_files(self._place, path, recursive=recursive)
        return AsyncWatch(self._connection, fs.WatchTrack(request))

    async def _put(
        self,
        path: str,
        content: Content | FileSource,
        *,
        mode: int | str | None = None,
        append: bool = False,
        offset: int | None = None,
        exclusive: bool = False,
        parents: bool = True,
    ) -> FileInfo:
        whole, upload = _body(content)
        return await self._info(
            fs.put_file(
                self._place,
                path,
                content=whole,
                upload=upload,
                mode=mode,
                append=append,
                offset=offset,
                exclusive=exclusive,
                parents=parents,
            )
        )

    async def _info(self, request: Request) -> FileInfo:
        response = await self._connection.send(request)
        return results.file_info(results.object_of(response.content, request.what))

    async def _upload_tree(
        self, local: str | os.PathLike[str], path: str, progress: Progress | None
    ) -> Transfer:
        source = await in_thread(TarSource, local, progress)
        request = fs.put_tree(self._place, path, source)
        response = await self._connection.send(request)
        value = results.object_of(response.content, request.what)
        return Transfer(
            files=results.count_of(value, "entries"),
            size=results.count_of(value, "bytes"),
            left_out=tuple(source.left_out),
        )

    async def _download_tree(
        self, path: str, local: str | os.PathLike[str], progress: Progress | None
    ) -> Transfer:
        """A directory, begun again where the connection was lost: the end is the same."""
        policy, attempt = Policy(), 0
        while True:
            try:
                return await self._download_tree_once(path, local, progress)
            except ConnectionLost:
                delay = policy.after_failure(attempt, sent=True, repeatable=True)
                if delay is None:
                    raise
                await sleep(delay)
                attempt += 1

    async def _download_tree_once(
        self, path: str, local: str | os.PathLike[str], progress: Progress | None
    ) -> Transfer:
        request = fs.get_tree(self._place, path)
        target = TarTarget(local, request.what, progress)
        async with self._connection.stream(request) as response:
            with target:
                async for piece in self._connection.body(response, request):
                    target.feed(piece)
        return Transfer(files=target.files, size=target.done, left_out=tuple(target.left_out))


def _body(content: Content | FileSource) -> tuple[bytes | None, Source | None]:
    """Content that is in memory, and content that is sent in pieces."""
    if isinstance(content, str):
        return content.encode("utf-8"), None
    if isinstance(content, bytes | bytearray | memoryview):
        return bytes(content), None
    if isinstance(content, FileSource):
        return None, content
    if hasattr(content, "read"):
        return None, FileSource(cast(BinaryIO, content))
    if not isinstance(content, Iterable):
        kind = type(content).__name__
        raise InvalidArgument(f"content must be text, bytes, a file or pieces of bytes, not {kind}")
    return None, PieceSource(content)


def _delay(patience: Patience, exc: AgentCubeError, *, begun: bool) -> float:
    """How long to wait before asking for the rest. Raises `exc` when that has gone on for too long, or never began."""
    delay = patience.delay(time.monotonic()) if begun or isinstance(exc, ConnectionLost) else None
    if delay is None:
        raise exc
    return delay
