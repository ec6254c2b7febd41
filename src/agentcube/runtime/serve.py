"""How a process of ours lives: loops side by side, signals received once, drained, then cancelled.

The servers and loops know nothing of signals; what they are is the composition's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from pathlib import Path

import structlog
import uvicorn
from uvicorn._types import ASGIApplication

log = structlog.get_logger(__name__)

DRAIN_S = 10.0
"""How long a stopping process may take to finish what it is doing."""

_CLOSE_S = 2.0  # uvicorn looks at its exit flag every 0.1 s and then closes what is open

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class LoopEnded(RuntimeError):
    """A loop that must run for as long as the process returned by itself: a bug."""


class StopSignal:
    """Set by the first SIGTERM or SIGINT, or by `set`. `hurry` is set by the second.

    `on_set` is called with each.
    """

    def __init__(self, on_set: Callable[[], None] | None = None) -> None:
        self.event = asyncio.Event()
        self.hurry = asyncio.Event()
        self._on_set = on_set

    def set(self) -> None:
        (self.hurry if self.event.is_set() else self.event).set()
        if self._on_set is not None:
            self._on_set()


@contextlib.asynccontextmanager
async def stop_signals(on_set: Callable[[], None] | None = None) -> AsyncIterator[StopSignal]:
    """Receives SIGTERM and SIGINT for as long as the context lasts. For the main thread only."""
    loop, stop = asyncio.get_running_loop(), StopSignal(on_set)
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def serve(
    loops: Mapping[str, Callable[[], Awaitable[None]]],
    *,
    stop: StopSignal,
    started: Callable[[], Awaitable[None]] | None = None,
    drain: Callable[[], Awaitable[None]] | None = None,
    drain_s: float = DRAIN_S,
    clear: Callable[[], Awaitable[None]] | None = None,
    clear_s: float = DRAIN_S,
) -> None:
    """Run `loops` (by name) until `stop`, then `drain` and `clear`, then cancel them.

    `started` runs once beside the loops (it waits for readiness and announces it). A loop that
    fails or returns ends everything: its exception comes out of here in an ExceptionGroup. `drain`
    waits for others, for at most `drain_s`, and a second signal cuts it short; `clear` is our own
    work, which may take `clear_s` and is done for whoever is in a hurry, too.
    """

    async def forever(name: str, run: Callable[[], Awaitable[None]]) -> None:
        await run()
        if not stop.event.is_set():
            raise LoopEnded(f"{name} ended by itself")

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(forever(name, run), name=name) for name, run in loops.items()]
        announcing = group.create_task(_run(started), name="started") if started else None
        await stop.event.wait()
        if announcing is not None:
            announcing.cancel()
        if drain is not None:
            await _bounded("drain", drain, stop.hurry, drain_s)
        if clear is not None:
            await _bounded("clear", clear, asyncio.Event(), clear_s)
        for task in tasks:
            task.cancel()


async def _bounded(
    name: str, work: Callable[[], Awaitable[None]], hurry: asyncio.Event, seconds: float
) -> None:
    async with asyncio.TaskGroup() as group:
        working = group.create_task(_run(work))
        hurrying = group.create_task(hurry.wait())
        await asyncio.wait({working, hurrying}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            log.warning("stop cut short", step=name, hurried=hurry.is_set(), limit_s=seconds)
            working.cancel()
        hurrying.cancel()


async def _run(call: Callable[[], Awaitable[None]]) -> None:
    await call()


class _Uvicorn(uvicorn.Server):
    """uvicorn that leaves signals alone and says when it listens.

    Upstream catches signals and raises them again after serving, which would kill us before our
    context managers close.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self.listening.set()


class AppServer:
    """An ASGI application on a listening socket, as one of the loops of `serve`.

    The socket is bound by the caller (`unix_socket`, `tcp_socket`) so that a taken port is an error
    before anything else starts. It is closed here.
    """

    def __init__(self, app: ASGIApplication, listener: socket.socket, *, drain_s: float = DRAIN_S) -> None:
        self._listener = listener
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                loop="none",
                lifespan="off",  # loops live beside the server, never in it
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, int(drain_s)),
                timeout_keep_alive=75,  # longer than the Router keeps idle connections to us
                ws="none",
            )
        )

    async def run(self) -> None:
        """Serve until `stop` or cancelled; cancelling does not wait for answers under way."""
        serving = asyncio.ensure_future(self._server.serve(sockets=[self._listener]))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            self._server.should_exit = self._server.force_exit = True
            await asyncio.wait({serving}, timeout=_CLOSE_S)
            raise
        finally:
            serving.cancel()
            self._listener.close()

    async def listening(self) -> None:
        """Return once connections are accepted."""
        await self._server.listening.wait()

    def stop(self) -> None:
        """Ask `run` to finish: no new connections, answers that are under way are completed."""
        self._server.should_exit = True


def unix_socket(path: Path) -> socket.socket:
    """A listening unix socket at `path`, mode 0600; a stale one there is replaced. Raises OSError."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def tcp_socket(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening TCP socket; port 0 takes a free one. Raises OSError when it is taken.

    `shared`: others of this user may listen there as well (SO_REUSEPORT), each for a part of the connections.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.listen(1024)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
