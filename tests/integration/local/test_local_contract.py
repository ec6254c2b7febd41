"""The local driver keeps the driver contract, with real sandboxes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from agentcube.drivers.local.driver import LocalDriver
from agentcube.model.ids import SandboxId, SessionId
from agentcube.model.sandbox import Sandbox, SandboxSpec
from agentcube.runtime.keys import RsaSigner
from agentcube.testing.driver_contract import DriverContract
from agentcube.testing.driver_suite import BindingToken, Crash
from tests.integration.local.conftest import Machine, pid_of


class TestLocalDriver(DriverContract):
    @pytest.fixture
    def open_driver(self, machine: Machine) -> Callable[[], AbstractAsyncContextManager[LocalDriver]]:
        return machine.driver

    @pytest.fixture
    def new_spec(self, machine: Machine) -> Callable[[], SandboxSpec]:
        return lambda: machine.spec(labels={"template": "contract"})

    @pytest.fixture
    def binding_token(self, signer: RsaSigner) -> BindingToken:
        return lambda session, sandbox: signer.for_binding(SessionId(session), SandboxId(sandbox))

    @pytest.fixture
    def crash(self) -> Crash:
        async def kill(driver: object, sandbox: Sandbox) -> None:
            os.kill(pid_of(sandbox), signal.SIGKILL)

        return kill
