"""Keeps Router workers running: one for each listening socket, which stays ours, so that no connection is lost."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Sequence

import structlog

from agentcube.errors import StartTimedOut
from agentcube.ports.clock import Clock
from agentcube.ports.control import ControlPlane
from agentcube.ports.store import SessionStore
from agentcube.up.workers.answering import Answering, Check
from agentcube.up.workers.link import LINE_BYTES_MAX, Link, Message

log = structlog.get_logger(__name__)

READY_S = 60.0
"""For a worker to import the Router and learn the session table."""

END_S = 26.0
"""For a worker to let requests end (its Router gives them 20 s, and 2 to connections) before it is killed."""

_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0)  # before the next start, by how many starts in a row came to nothing


class _Worker:
    """One process and our end of its link."""

    def __init__(self, process: asyncio.subprocess.Process, answering: Answering) -> None:
        self.process = process
        self.answering = answering
        self.serving = asyncio.create_task(answering.run(), name=f"worker {process.pid}")

    async def end(self) -> None:
        """Return when it has ended: by itself, when told to drain, or killed at the deadline."""
        try:
            async with asyncio.timeout(END_S):
                await self.process.wait()
        except TimeoutError:
            log.warning("router worker killed: it did not drain in time", worker=self.process.pid)
            self.kill()
            await self.process.wait()
        await self.serving

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class Workers:
    """As many Router processes as there are listening sockets. `run` is one of the loops of the main process."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        settings: Message,
        *,
        store: SessionStore,
        clock: Clock,
        control: ControlPlane,
        check: Check,
    ) -> None:
        """`settings` are the first message to a worker (`__main__.Settings`)."""
        self._listeners = listeners
        self._settings = settings
        self._store, self._control, self._check = store, control, check
        self._clock = clock
        self._workers: list[_Worker | None] = [None] * len(listeners)
        self._draining = False
        self._serving = [asyncio.Event() for _ in listeners]
        self._replacing = asyncio.Lock()

    @property
    def pids(self) -> list[int]:
        """The workers that run now."""
        return [worker.process.pid for worker in self._workers if worker is not None]

    async def run(self) -> None:
        """Keep every worker running until `drain`, or cancelled; then none is left."""
        try:
            async with asyncio.TaskGroup() as group:
                for place in range(len(self._listeners)):
                    group.create_task(self._keep(place), name=f"router worker {place}")
        finally:
            for worker in filter(None, self._workers):
                worker.kill()
            for listener in self._listeners:
                listener.close()

    async def serving(self) -> None:
        """Return once every worker serves."""
        for event in self._serving:
            await event.wait()

    async def replace(self) -> None:
        """Put a new process in every worker's place, one after the other, without losing a request.

        The new one accepts from the same socket before the old one stops to. An old one that has long
        streams under way ends when they do, or at the deadline.
        """
        async with self._replacing:
            for place in range(len(self._listeners)):
                if self._draining:
                    return
                old = self._workers[place]
                new = await self._start(place)
                self._workers[place] = new
                if old is not None:
                    old.answering.drain()
                    await old.end()
                log.info("router worker replaced", worker=new.process.pid)

    async def drain(self) -> None:
        """Let what is under way end, and every worker with it."""
        self._draining = True
        workers = [worker for worker in self._workers if worker is not None]
        for worker in workers:
            worker.answering.drain()
        await asyncio.gather(*(worker.end() for worker in workers))

    async def _keep(self, place: int) -> None:
        failures = 0
        while not self._draining:
            worker = self._workers[place]
            if worker is None:
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                failures += 1
                try:
                    self._workers[place] = await self._start(place)
                except (OSError, StartTimedOut) as exc:
                    log.error("router worker did not start", reason=str(exc))
                    continue
                failures = 0
                self._serving[place].set()
                continue
            await worker.serving
            code = await worker.process.wait()
            if self._workers[place] is worker and not self._draining:
                log.error("router worker ended", worker=worker.process.pid, code=code)
                self._workers[place] = None

    async def _start(self, place: int) -> _Worker:
        """A worker that serves. Raises OSError, StartTimedOut."""
        ours, theirs = socket.socketpair()
        listener = self._listeners[place]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "agentcube.up.workers", str(listener.fileno()), str(theirs.fileno())),
                pass_fds=[listener.fileno(), theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C at our terminal is ours to handle
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        link = Link(*await asyncio.open_connection(sock=ours, limit=LINE_BYTES_MAX))
        worker = _Worker(process, Answering(link, self._store, self._control, self._check, self._clock))
        link.send(self._settings)
        try:
            async with asyncio.timeout(READY_S):
                await self._first(worker)
        except BaseException as exc:
            worker.kill()
            await process.wait()
            await worker.serving
            if isinstance(exc, TimeoutError):
                raise StartTimedOut(f"router worker {process.pid} did not serve in time") from None
            raise
        return worker

    async def _first(self, worker: _Worker) -> None:
        """Return when it serves. Raises StartTimedOut when it ends before."""
        ready = asyncio.create_task(worker.answering.ready.wait())
        try:
            await asyncio.wait({ready, worker.serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if not worker.answering.ready.is_set():
            raise StartTimedOut(f"router worker {worker.process.pid} ended before it served")
