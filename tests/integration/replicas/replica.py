"""One manager of several, a process of its own: a shared store, and the test's machine as its driver.

Run as a program it is a nursery: for each line of JSON `[redis url, prefix, folder, name, settings]` it forks a
manager, so that the imports are paid once, and says its pid. The manager serves `FOLDER/NAME.sock`, uses
`FOLDER/machine.sock`, and ends when the test does.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from agentcube.manager.creation import Repeatable, Wish
from agentcube.manager.manager import Manager
from agentcube.manager.settings import ManagerSettings
from agentcube.ports.tokens import LOCAL
from agentcube.runtime.keys import RsaSigner, load_or_make_key
from agentcube.stores.redis.address import parse_address
from agentcube.stores.redis.settings import RedisSettings
from agentcube.stores.redis.store import RedisStore
from tests.integration.replicas.wire import Caller, answer

_CALLS = frozenset({
    "capabilities", "create", "bind", "ready", "observe", "adopt", "inventory", "destroy", "usage", "suspend",
    "resume",
})  # fmt: skip


class FarDriver:
    """The driver of the test's machine, as a remote API is: a call that was sent goes on without its caller."""

    name = "fake"

    def __init__(self, machine: Caller) -> None:
        self._machine = machine

    def __getattr__(self, name: str) -> Any:
        if name not in _CALLS:
            raise AttributeError(name)

        async def call(*args: Any, **options: Any) -> Any:
            return await self._machine.call(name, *args, **options)

        return call

    # By their names `Suspendable` is known.
    async def suspend(self, *args: Any, **options: Any) -> Any:
        return await self._machine.call("suspend", *args, **options)

    async def resume(self, *args: Any, **options: Any) -> Any:
        return await self._machine.call("resume", *args, **options)


async def serve(url: str, prefix: str, folder: Path, name: str, settings: dict[str, Any]) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    machine = Caller()
    await machine.connect(folder / "machine.sock")
    await machine.call("hello", name)
    redis = RedisSettings(prefix=prefix, heartbeat_s=0.5, answer_timeout_s=60, connect_timeout_s=60)
    async with RedisStore.open(parse_address(url), redis) as store:
        manager = Manager(
            ManagerSettings(replica=name, replicated=True, **settings),
            store=store,
            driver=FarDriver(machine),  # type: ignore[arg-type]  # by __getattr__
            signer=RsaSigner(load_or_make_key(folder / "keys")),
            clock=store.clock,
        )
        running = asyncio.ensure_future(manager.run())
        await manager.recovered()
        sessions = manager.service.sessions

        async def do(call: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
            match call:
                case "create":
                    wish, key = args
                    repeat = Repeatable(key, "same") if key else None
                    return await sessions.create(Wish(**wish), LOCAL, repeat)
                case "put":
                    return await manager.service.catalog.put(*args)
                case "keeping":
                    return manager._keeper.keeping
                case "wake":
                    return await manager.service.wake(*args)
                case "suspend" | "delete":
                    return await getattr(sessions, call)(*args, LOCAL)
            raise AssertionError(call)

        server = await asyncio.start_unix_server(lambda r, w: answer(r, w, do), folder / f"{name}.sock")
        async with server:
            ending = asyncio.ensure_future(stop.wait())
            await asyncio.wait({ending, running, machine.lost}, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                await manager.hand_over()
            running.cancel()
            await asyncio.wait({running})


def nursery() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them here
    for line in iter(sys.stdin.readline, ""):
        url, prefix, folder, name, settings = json.loads(line)
        pid = os.fork()
        if pid == 0:
            log = os.open(f"{folder}/{name}.log", os.O_CREAT | os.O_WRONLY)
            for descriptor in (0, 1, 2):
                os.dup2(log, descriptor)
            asyncio.run(serve(url, prefix, Path(folder), name, settings))
            os._exit(0)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    nursery()
