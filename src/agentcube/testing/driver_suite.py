"""What the driver contracts share: what a subclass gives, and a few ways of asking."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import pytest

from agentcube.model.ids import SandboxId, new_sandbox_id
from agentcube.model.plan import Seen
from agentcube.model.sandbox import Sandbox, SandboxSpec
from agentcube.ports.driver import SandboxDriver
from agentcube.testing.eventually import eventually

OpenDriver = Callable[[], AbstractAsyncContextManager[SandboxDriver]]
BindingToken = Callable[[str, SandboxId], str]
Crash = Callable[[SandboxDriver, Sandbox], Awaitable[None]]

PATIENCE_S = 10.0  # for what must become true soon, on a slow and busy machine
_INTERPRETER: str = getattr(sys, "_base_executable", sys.executable)
_HEALTH = b"GET /health HTTP/1.1\r\nhost: picod\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True)
class Commands:
    """What a sandbox of this driver can run: argv for each behaviour the contract asks about.

    The defaults suit a sandbox with the machine's own programs and the interpreter that runs us.
    """

    exits_with_3: tuple[str, ...] = ("/bin/sh", "-c", "exit 3")
    never_listens: tuple[str, ...] = ("/bin/sleep", "1000")
    serves_http_on_8080: tuple[str, ...] = (_INTERPRETER, "-I", "-m", "http.server", "8080")


class DriverSuite:
    """The fixtures of every driver contract; all but `open_driver` and `binding_token` have defaults."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def open_driver(self) -> OpenDriver:
        """Opens the driver; each call within one test opens it again on the same machine, as a restart does."""
        raise NotImplementedError

    @pytest.fixture
    def new_spec(self) -> Callable[[], SandboxSpec]:
        """Makes specs with fresh ids, without a command, that this driver honours."""
        return lambda: SandboxSpec(id=new_sandbox_id(), labels={"template": "contract"})

    @pytest.fixture
    def binding_token(self) -> BindingToken:
        """A token that binds a sandbox to a session: (session id, sandbox id) -> token."""
        raise NotImplementedError

    @pytest.fixture
    def crash(self) -> Crash | None:
        """Kills a sandbox behind the driver's back; None when there is no way to."""
        return None

    @pytest.fixture
    def commands(self) -> Commands:
        return Commands()

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def driver(self, open_driver: OpenDriver) -> AsyncIterator[SandboxDriver]:
        """One open driver; whatever a test leaves behind is destroyed, and then nothing is left."""
        async with open_driver() as driver:
            yield driver
            for id, _ in await driver.inventory():
                await driver.destroy(id)
            assert await driver.inventory() == []

    @pytest.fixture
    def spec(self, new_spec: Callable[[], SandboxSpec]) -> SandboxSpec:
        return new_spec()


async def status(connection: socket.socket, *, within: float = PATIENCE_S) -> bytes:
    """The protocol and status code that answer a GET on the connection, which is closed after. TimeoutError."""
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        writer.write(_HEALTH)
        async with asyncio.timeout(within):
            line = await reader.readline()
            await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()
    return line[:12]


async def until_gone(driver: SandboxDriver, sandbox: Sandbox) -> None:
    """Return once the driver sees that the sandbox is gone, which must be soon."""

    async def gone() -> bool:
        return await driver.observe(sandbox) is Seen.GONE

    await eventually(gone, within=PATIENCE_S)
