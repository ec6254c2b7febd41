"""The SDK: an async half that is written, a sync half generated from it, and a core without I/O.

It knows the wire and `agentcube.errors`, and nothing of the servers. Names are imported when first
used: the HTTP client is the expensive part and is loaded only when a client is made.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentcube.errors import AgentCubeError
    from agentcube.sdk._async.agent_runtime import AsyncAgentRuntimeClient
    from agentcube.sdk._async.auth import AsyncServiceAccountAuth
    from agentcube.sdk._async.code_interpreter import AsyncCodeInterpreterClient
    from agentcube.sdk._async.management import AsyncAgentCube
    from agentcube.sdk._core.auth import AuthProvider, TokenAuth
    from agentcube.sdk._core.errors import (
        ClientClosed,
        CommandExecutionError,
        ConnectFailed,
        ConnectionLost,
        InvalidArgument,
        NotConfigured,
        TimedOut,
        TransferIncomplete,
        UnexpectedAnswer,
    )
    from agentcube.sdk._core.results import (
        CommandResult,
        Created,
        FileInfo,
        PoolInfo,
        SessionInfo,
        TemplateInfo,
    )
    from agentcube.sdk._sync.agent_runtime import AgentRuntimeClient
    from agentcube.sdk._sync.auth import ServiceAccountAuth
    from agentcube.sdk._sync.code_interpreter import CodeInterpreterClient
    from agentcube.sdk._sync.management import AgentCube

_HOME = {
    "AgentCube": "_sync.management",
    "AgentCubeError": "_core.errors",
    "AgentRuntimeClient": "_sync.agent_runtime",
    "AsyncAgentCube": "_async.management",
    "AsyncAgentRuntimeClient": "_async.agent_runtime",
    "AsyncCodeInterpreterClient": "_async.code_interpreter",
    "AsyncServiceAccountAuth": "_async.auth",
    "AuthProvider": "_core.auth",
    "ClientClosed": "_core.errors",
    "CodeInterpreterClient": "_sync.code_interpreter",
    "CommandExecutionError": "_core.errors",
    "CommandResult": "_core.results",
    "ConnectFailed": "_core.errors",
    "ConnectionLost": "_core.errors",
    "Created": "_core.results",
    "FileInfo": "_core.results",
    "InvalidArgument": "_core.errors",
    "NotConfigured": "_core.errors",
    "PoolInfo": "_core.results",
    "ServiceAccountAuth": "_sync.auth",
    "SessionInfo": "_core.results",
    "TemplateInfo": "_core.results",
    "TimedOut": "_core.errors",
    "TokenAuth": "_core.auth",
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
    "AsyncServiceAccountAuth",
    "AuthProvider",
    "ClientClosed",
    "CodeInterpreterClient",
    "CommandExecutionError",
    "CommandResult",
    "ConnectFailed",
    "ConnectionLost",
    "Created",
    "FileInfo",
    "InvalidArgument",
    "NotConfigured",
    "PoolInfo",
    "ServiceAccountAuth",
    "SessionInfo",
    "TemplateInfo",
    "TimedOut",
    "TokenAuth",
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
