"""AgentCube: sandboxed sessions for AI agents. The public SDK names, imported when first used.

Importing this package imports nothing else (PEP 562), so that `agentcube.picod` inside a sandbox,
which has only the standard library, does not pay for or depend on the SDK.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentcube.errors import AgentCubeError
    from agentcube.sdk import (
        AgentCube,
        AgentRuntimeClient,
        AsyncAgentCube,
        AsyncAgentRuntimeClient,
        AsyncCodeInterpreterClient,
        AsyncServiceAccountAuth,
        AuthProvider,
        ClientClosed,
        CodeInterpreterClient,
        CommandExecutionError,
        CommandResult,
        ConnectFailed,
        ConnectionLost,
        Created,
        FileInfo,
        InvalidArgument,
        NotConfigured,
        PoolInfo,
        ServiceAccountAuth,
        SessionInfo,
        TemplateInfo,
        TimedOut,
        TokenAuth,
        TransferIncomplete,
        UnexpectedAnswer,
    )

    __version__: str

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
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'agentcube' has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("agentcube")
    elif name == "AgentCubeError":
        from agentcube import errors

        value = errors.AgentCubeError
    else:
        from agentcube import sdk

        value = getattr(sdk, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
