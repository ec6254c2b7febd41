"""The fake driver against the driver contract; tests/integration/local runs it on real sandboxes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from agentcube.drivers.fake import Exits, FakeDriver, FakeMachine, Program, Serves, Silent
from agentcube.model.sandbox import Sandbox
from agentcube.ports.driver import SandboxDriver
from agentcube.testing.driver_contract import DriverContract
from agentcube.testing.driver_suite import BindingToken, Commands, Crash


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
    await writer.drain()


class TestFakeDriver(DriverContract):
    @pytest.fixture
    def open_driver(self, commands: Commands) -> Callable[[], AbstractAsyncContextManager[FakeDriver]]:
        machine = FakeMachine()
        programs: dict[tuple[str, ...], Program] = {
            commands.exits_with_3: Exits(3),
            commands.never_listens: Silent(),
            commands.serves_http_on_8080: Serves(_answer),
        }
        return lambda: FakeDriver(machine, programs=programs, picod=_answer)

    @pytest.fixture
    def binding_token(self) -> BindingToken:
        return lambda session, sandbox: f"session:{session}"

    @pytest.fixture
    def crash(self) -> Crash:
        async def kill(driver: SandboxDriver, sandbox: Sandbox) -> None:
            assert isinstance(driver, FakeDriver)
            driver.crash(sandbox.id)

        return kill
