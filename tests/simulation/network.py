"""How simulated processes reach each other: byte streams as of sockets, and calls on top of messages.

Streams keep their order and may be reset; calls of the control plane may be lost, late, doubled and
overtake each other, as they may when a client repeats them through proxies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from agentcube.errors import AgentCubeError, Unavailable
from tests.simulation.loop import Process, SimLoop


class Weather:
    """What the network is like now. Delays are seconds; the rest are chances per message."""

    def __init__(self) -> None:
        self.calm()

    def calm(self) -> None:
        """As good as it gets."""
        self.delay_s = 0.001
        self.late = 0.0
        self.late_s = 0.0
        self.lost = 0.0
        self.doubled = 0.0
        self.reset = 0.0


class End(asyncio.Transport):
    """One end of a stream, in its process. Its bytes arrive in order at the other end, after a delay."""

    def __init__(self, network: Network, process: Process, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._network = network
        self._loop = network.loop
        self.process = process
        self.protocol = protocol
        self.other: End
        self._arrival = 0.0  # of the latest bytes that come to this end
        self._closing = False
        self._reading = True
        self._held: list[Callable[[], None]] = []

    # asyncio.Transport, as far as the Router uses it

    def write(self, data: Any) -> None:
        if not self._closing:
            network = self._network
            if network.weather.reset and network.random.random() < network.weather.reset:
                self.reset()
            else:
                self._send(self.other._arrive, bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._send(self.other._ended)
            self._lose()

    abort = close

    def reset(self) -> None:
        """The stream breaks; each end learns it in its own time."""
        self._send(self.other._ended)
        self._lose()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        while self._reading and self._held:
            self._held.pop(0)()

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Nothing is ever held back."""

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("198.51.100.7", 50000) if name == "peername" else default

    # How bytes come

    def _send(self, arrive: Callable[..., None], *args: Any) -> None:
        other = self.other
        when = self._network.arrival(other._arrival)
        other._arrival = when
        self._loop.deliver(other.process, when, arrive, *args)

    def _arrive(self, data: bytes) -> None:
        if self._closing:
            return
        if self._reading:
            self.protocol.data_received(data)
        else:
            self._held.append(lambda: self._arrive(data))

    def _ended(self) -> None:
        if self._closing:
            return
        if self._reading:
            self._lose()
        else:
            self._held.append(self._ended)

    def _lose(self) -> None:
        if not self._closing:
            self._closing = True
            self.process.on_death.pop(self.died, None)
            self._held.clear()
            self._loop.call_soon(self.protocol.connection_lost, None)

    def died(self) -> None:
        """Its process is no more: the kernel closes what it had open."""
        if not self._closing:
            self._closing = True
            self._send(self.other._ended)


class Network:
    """All connections and calls. `weather` is for everything but the links to the store."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self.loop = loop
        self.random = random
        self.weather = Weather()

    def arrival(self, not_before: float = 0.0) -> float:
        """When a message that is sent now arrives."""
        weather, random = self.weather, self.random.random
        delay = weather.delay_s * (0.5 + random())
        if weather.late and random() < weather.late:
            delay += weather.late_s * random()
        return max(self.loop.time() + delay, not_before)

    def connect(
        self, near: Process, protocol: asyncio.Protocol, far: Process, accept: Callable[[], asyncio.Protocol]
    ) -> End:
        """A stream from `near` to a server in `far`, which learns of it with the first message."""
        here, there = End(self, near, protocol), End(self, far, accept())
        here.other, there.other = there, here
        near.on_death[here.died] = None
        far.on_death[there.died] = None
        with self.loop.within(far):
            there.protocol.connection_made(there)
        protocol.connection_made(here)
        return here

    async def call(
        self,
        caller: Process,
        server: Process | None,
        work: Callable[[], Coroutine[Any, Any, Any]],
        *,
        timeout_s: float = 30.0,
        repeatable: bool = False,
    ) -> Any:
        """What `work`, done in `server`, answers. A caller that is cancelled ends the work, as a client that leaves.

        Raises what it raises, and Unavailable when the answer does not come: whether the work was done is
        not known then. `repeatable` work may be done twice.
        """
        if server is None or not server.alive:
            await asyncio.sleep(self.weather.delay_s)
            raise Unavailable("connection refused")
        calling = _Call(self, caller, server, work)
        weather, random = self.weather, self.random.random
        copies = 2 if repeatable and random() < weather.doubled else 1
        for _ in range(copies):
            if random() >= weather.lost:
                self.loop.deliver(server, self.arrival(), calling.begin)
        try:
            async with asyncio.timeout(timeout_s):
                return await calling.answer
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        finally:
            calling.left()


class _Call:
    def __init__(
        self, network: Network, caller: Process, server: Process, work: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        self._network = network
        self._loop = network.loop
        self._caller = caller
        self._server = server
        self._work = work
        self._tasks: list[asyncio.Task[Any]] = []
        self.answer: asyncio.Future[Any] = network.loop.create_future()
        server.on_death[self._reset] = None

    def begin(self) -> None:
        """The request arrived."""
        task = self._loop.create_task(self._work(), name="call")
        self._tasks.append(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        error = Unavailable("the call was given up") if task.cancelled() else task.exception()
        network = self._network
        if network.random.random() >= network.weather.lost:
            answer = None if error else task.result()
            self._loop.deliver(self._caller, network.arrival(), self._answered, error, answer)

    def _answered(self, error: BaseException | None, answer: Any) -> None:
        if self.answer.done():
            return
        if error is None:
            self.answer.set_result(answer)
        else:
            self.answer.set_exception(_told(error))
            self.answer.exception()

    def _reset(self) -> None:
        error = Unavailable("connection reset")
        self._loop.deliver(self._caller, self._network.arrival(), self._answered, error, None)

    def left(self) -> None:
        """The caller waits no more."""
        self._server.on_death.pop(self._reset, None)
        if not self.answer.done():
            self.answer.cancel()
        if any(not task.done() for task in self._tasks) and self._server.alive:
            self._loop.deliver(self._server, self._network.arrival(), self._end)

    def _end(self) -> None:
        for task in self._tasks:
            task.cancel()


def _told(error: BaseException) -> BaseException:
    """The error as it is on the other side of the wire."""
    if isinstance(error, AgentCubeError):
        return type(error)(error.detail, **error.context)
    return error
