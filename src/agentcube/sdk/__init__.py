"""The SDK: an async half that is written, a sync half generated from it, and a core without I/O.

It knows the wire and `agentcube.errors`, and nothing of the servers. Names are imported when first
used: the HTTP client is the expensive part and is loaded only when a client is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentcube.errors import AgentCubeError
    from agentcube.sdk._async._stream import AsyncEventStream
    from agentcube.sdk._async.agent_runtime import AsyncAgentRuntimeClient
    from agentcube.sdk._async.auth import AsyncServiceAccountAuth
    from agentcube.sdk._async.code_interpreter import AsyncCodeInterpreterClient
    from agentcube.sdk._async.kernels import AsyncKernel
    from agentcube.sdk._async.management import AsyncAgentCube
    from agentcube.sdk._async.process import AsyncProcess
    from agentcube.sdk._async.sandbox import AsyncSandbox
    from agentcube.sdk._async.terminal import AsyncTerminal
    from agentcube.sdk._core.auth import AuthProvider, TokenAuth
    from agentcube.sdk._core.display import Result
    from agentcube.sdk._core.errors import (
        CellFailed,
        ClientClosed,
        CommandExecutionError,
        ConnectFailed,
        ConnectionLost,
        InvalidArgument,
        NotConfigured,
        StreamReplaced,
        TimedOut,
        TransferIncomplete,
        UnexpectedAnswer,
    )
    from agentcube.sdk._core.execution import Execution
    from agentcube.sdk._core.kernels import KernelInfo
    from agentcube.sdk._core.ports import PortInfo, ShareLink
    from agentcube.sdk._core.processes import ProcessInfo
    from agentcube.sdk._core.results import (
        CommandResult,
        Created,
        FileInfo,
        PoolInfo,
        SessionInfo,
        TemplateInfo,
        Transfer,
    )
    from agentcube.sdk._sync._stream import EventStream
    from agentcube.sdk._sync.agent_runtime import AgentRuntimeClient
    from agentcube.sdk._sync.auth import ServiceAccountAuth
    from agentcube.sdk._sync.code_interpreter import CodeInterpreterClient
    from agentcube.sdk._sync.kernels import Kernel
    from agentcube.sdk._sync.management import AgentCube
    from agentcube.sdk._sync.process import Process
    from agentcube.sdk._sync.sandbox import Sandbox
    from agentcube.sdk._sync.terminal import Terminal

_HOME = {
    "AgentCube": "_sync.management",
    "AgentCubeError": "_core.errors",
    "AgentRuntimeClient": "_sync.agent_runtime",
    "AsyncAgentCube": "_async.management",
    "AsyncAgentRuntimeClient": "_async.agent_runtime",
    "AsyncCodeInterpreterClient": "_async.code_interpreter",
    "AsyncEventStream": "_async._stream",
    "AsyncKernel": "_async.kernels",
    "AsyncProcess": "_async.process",
    "AsyncSandbox": "_async.sandbox",
    "AsyncServiceAccountAuth": "_async.auth",
    "AsyncTerminal": "_async.terminal",
    "AuthProvider": "_core.auth",
    "CellFailed": "_core.errors",
    "ClientClosed": "_core.errors",
    "CodeInterpreterClient": "_sync.code_interpreter",
    "CommandExecutionError": "_core.errors",
    "CommandResult": "_core.results",
    "ConnectFailed": "_core.errors",
    "ConnectionLost": "_core.errors",
    "Created": "_core.results",
    "EventStream": "_sync._stream",
    "Execution": "_core.execution",
    "FileInfo": "_core.results",
    "InvalidArgument": "_core.errors",
    "Kernel": "_sync.kernels",
    "KernelInfo": "_core.kernels",
    "NotConfigured": "_core.errors",
    "PoolInfo": "_core.results",
    "PortInfo": "_core.ports",
    "Process": "_sync.process",
    "ProcessInfo": "_core.processes",
    "Result": "_core.display",
    "Sandbox": "_sync.sandbox",
    "ServiceAccountAuth": "_sync.auth",
    "SessionInfo": "_core.results",
    "ShareLink": "_core.ports",
    "StreamReplaced": "_core.errors",
    "TemplateInfo": "_core.results",
    "Terminal": "_sync.terminal",
    "TimedOut": "_core.errors",
    "TokenAuth": "_core.auth",
    "Transfer": "_core.results",
    "TransferIncomplete": "_core.errors",
    "UnexpectedAnswer": "_core.errors",
}

__all__ = [
    "AgentCube",
    "AgentCubeError",
    "AgentRuntimeClient",
    "AsyncAgentCube",
    "AsyncAgentRuntimeClient",
    "AsyncCodeInterpreterClient",
    "AsyncEventStream",
    "AsyncKernel",
    "AsyncProcess",
    "AsyncSandbox",
    "AsyncServiceAccountAuth",
    "AsyncTerminal",
    "AuthProvider",
    "CellFailed",
    "ClientClosed",
    "CodeInterpreterClient",
    "CommandExecutionError",
    "CommandResult",
    "ConnectFailed",
    "ConnectionLost",
    "Created",
    "EventStream",
    "Execution",
    "FileInfo",
    "InvalidArgument",
    "Kernel",
    "KernelInfo",
    "NotConfigured",
    "PoolInfo",
    "PortInfo",
    "Process",
    "ProcessInfo",
    "Result",
    "Sandbox",
    "ServiceAccountAuth",
    "SessionInfo",
    "ShareLink",
    "StreamReplaced",
    "TemplateInfo",
    "Terminal",
    "TimedOut",
    "TokenAuth",
    "Transfer",
    "TransferIncomplete",
    "UnexpectedAnswer",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'agentcube.sdk' has no attribute {name!r}")
    value: object = getattr(import_module(f"agentcube.sdk.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
