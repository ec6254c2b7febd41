"""What a client may catch, under the module name that programs written for the Go system's SDK import.

The classes live in `agentcube.errors` (raised by servers and mapped back here) and in the SDK.
"""

from __future__ import annotations

from agentcube.errors import AgentCubeError, SandboxUnavailable
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

__all__ = [
    "AgentCubeError",
    "CellFailed",
    "ClientClosed",
    "CommandExecutionError",
    "ConnectFailed",
    "ConnectionLost",
    "DataPlaneError",
    "InvalidArgument",
    "NotConfigured",
    "SessionError",
    "StreamReplaced",
    "TimedOut",
    "TransferIncomplete",
    "UnexpectedAnswer",
]

SessionError = AgentCubeError
"""The Go system's SDK defines this name and never raises it; the alias keeps imports working."""

DataPlaneError = SandboxUnavailable
"""As `SessionError`: defined there, never raised."""
