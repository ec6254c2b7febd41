"""`/api/fs` over HTTP: directories, moves and copies, archives both ways, and watches."""

from __future__ import annotations

import asyncio
from collections import deque

from agentcube.picod.asked import Asked
from agentcube.picod.events import EventStream
from agentcube.picod.files.files import DIRECTORY_MODE_DEFAULT, Files
from agentcube.picod.files.tar_pack import pack
from agentcube.picod.files.tar_unpack import unpack
from agentcube.picod.files.trees import copy
from agentcube.picod.files.watch import Batch, Watch
from agentcube.picod.messages import Request, Response
from agentcube.picod.problems import Problem
from agentcube.picod.routing import Access, Route
from agentcube.picod.upload_routes import UPLOAD_BYTES_MAX
from agentcube.picod.workers import Work, Workers

WATCHES_MAX = 8
"""Watches at once: each may hold 5 MB of events in the kernel, charged to PicoD (inotify(7), max_queued_events)."""


class FsRoutes:
    """The handlers. `user` (uid, gid) is who the file work is done as."""

    def __init__(self, workers: Workers, files: Files, user: tuple[int, int]) -> None:
        self._workers = workers
        self._files = files
        self._user = user
        self._watches = 0

    def rows(self) -> tuple[Route, ...]:
        """What is served here."""
        return (
            Route("GET", "/api/fs/stat", Access.SESSION, self.stat),
            Route("POST", "/api/fs/mkdir", Access.SESSION, self.mkdir),
            Route("POST", "/api/fs/move", Access.SESSION, self.move),
            Route("POST", "/api/fs/copy", Access.SESSION, self.copy),
            Route("GET", "/api/fs/tar", Access.SESSION, self.pack),
            Route("PUT", "/api/fs/tar", Access.SESSION, self.unpack),
            Route("GET", "/api/fs/watch", Access.SESSION, self.watch),
        )

    async def stat(self, request: Request, response: Response) -> None:
        """`GET /api/fs/stat`."""
        asked = Asked(request.query(), query=True)
        path, follow = asked.path("path", ""), asked.flag("follow", True)
        asked.done()
        entry = await self._workers.do(lambda: self._files.stat(path, follow=follow))
        await response.json(entry.members())

    async def mkdir(self, request: Request, response: Response) -> None:
        """`POST /api/fs/mkdir`."""
        asked = Asked(await request.json())
        path, mode = asked.path("path"), asked.mode("mode", DIRECTORY_MODE_DEFAULT)
        parents, exist_ok = asked.flag("parents", True), asked.flag("exist_ok", True)
        asked.done()
        entry, made = await self._workers.do(
            lambda: self._files.make_directory(path, mode, parents=parents, exist_ok=exist_ok)
        )
        await response.json(entry.members(), 201 if made else 200)

    async def move(self, request: Request, response: Response) -> None:
        """`POST /api/fs/move`."""
        asked = Asked(await request.json())
        source, destination = asked.path("source"), asked.path("destination")
        overwrite = asked.flag("overwrite", False)
        asked.done()
        entry = await self._workers.do(lambda: self._files.move(source, destination, overwrite=overwrite))
        await response.json(entry.members())

    async def copy(self, request: Request, response: Response) -> None:
        """`POST /api/fs/copy`."""
        asked = Asked(await request.json())
        source, destination = asked.path("source"), asked.path("destination")
        recursive, overwrite = asked.flag("recursive", True), asked.flag("overwrite", False)
        asked.done()
        steps = copy(self._files, source, destination, recursive=recursive, overwrite=overwrite)
        entry = await self._workers.finish(steps)
        await response.json(entry.members())

    # Archives

    async def pack(self, request: Request, response: Response) -> None:
        """`GET /api/fs/tar`: the archive of a directory, as it is made."""
        asked = Asked(request.query(), query=True)
        path, gzip = asked.path("path", ""), asked.flag("gzip", False)
        asked.done()
        kind = b"application/gzip" if gzip else b"application/x-tar"
        headers = ((b"content-type", kind), (b"x-content-type-options", b"nosniff"))
        steps = pack(self._files, path, gzip=gzip, user=self._user)
        await self._workers.respond(steps, response, headers)

    async def unpack(self, request: Request, response: Response) -> None:
        """`PUT /api/fs/tar`: unpack the body as it comes in."""
        asked = Asked(request.query(), query=True)
        path, given = asked.path("path", ""), asked.text("gzip", "auto")
        asked.done()
        if given not in ("auto", "true", "false"):
            raise Problem("invalid", "gzip must be true, false or auto")
        inbox: deque[bytes] = deque()
        gzip = None if given == "auto" else given == "true"
        work = self._workers.start(unpack(self._files, path, gzip, inbox))
        size = 0
        try:
            while not work.done:
                if await self._workers.next(work):
                    inbox.append(await request.body())
                    size += len(inbox[0])
                    if size > UPLOAD_BYTES_MAX:
                        raise Problem("body_too_large", f"an archive may have {UPLOAD_BYTES_MAX >> 30} GiB")
            unpacked = work.result
        finally:
            self._workers.stop(work)
        while await request.body():
            pass  # what stands behind the archive's end
        await response.json({"entries": unpacked.entries, "bytes": unpacked.bytes})

    # Watches

    async def watch(self, request: Request, response: Response) -> None:
        """`GET /api/fs/watch`: events until the client leaves, or the directory is gone."""
        asked = Asked(request.query(), query=True)
        path, recursive = asked.path("path", ""), asked.flag("recursive", False)
        asked.done()
        if self._watches >= WATCHES_MAX:
            raise Problem("limit_exceeded", f"{WATCHES_MAX} watches are open already")
        self._watches += 1
        try:
            watch = await self._workers.hold(
                lambda: Watch(self._files, path, recursive=recursive), release=Watch.close
            )
            work = self._workers.start(watch.run())
            try:
                await self._tell(request, response, watch, work)
            finally:
                self._workers.stop(work)
        finally:
            self._watches -= 1

    async def _tell(
        self, request: Request, response: Response, watch: Watch, work: Work[Batch, None]
    ) -> None:
        stream: EventStream | None = None
        while not work.done:
            batch = await self._workers.next(work)
            if batch is None:
                continue
            if stream is None:
                stream = await EventStream.open(request, response)
                if response.complete:
                    return  # HEAD
            for kind, members in batch.events:
                await stream.send(kind, members)
            if batch.wait is not None:
                await self._readable(watch.fd, batch.wait)
        if stream is not None:
            await stream.close()

    async def _readable(self, fd: int, within_s: float) -> None:
        """Wait until `fd` can be read, `within_s` at most."""
        loop = self._workers.loop
        ready = asyncio.Event()
        loop.add_reader(fd, ready.set)
        timer = loop.call_later(within_s, ready.set)
        try:
            await ready.wait()
        finally:
            timer.cancel()
            loop.remove_reader(fd)
