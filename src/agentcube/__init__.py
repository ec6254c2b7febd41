"""AgentCube: sandboxed sessions for AI agents. The public SDK names, imported when first used.

Importing this package imports nothing else (PEP 562), so that `agentcube.picod` inside a sandbox,
which has only the standard library, does not pay for or depend on the SDK. Type checkers read
`__init__.pyi`; here the names are text, so that no role depends on the SDK through its own package.
"""

from __future__ import annotations

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
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'agentcube' has no attribute {name!r}")
    from importlib import import_module

    value: object
    if name == "__version__":
        value = import_module("importlib.metadata").version("agentcube")
    else:
        value = getattr(import_module("agentcube.sdk"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
