"""What `import agentcube` promises: names, cost, and that the generated half is the generated half."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agentcube
import agentcube.events
import agentcube.sdk

ROOT = Path(__file__).resolve().parents[3]

PUBLIC = {
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
}


def _modules_after(code: str, *flags: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, *flags, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_public_names_are_frozen() -> None:
    assert set(agentcube.__all__) == PUBLIC
    assert set(agentcube.sdk.__all__) == PUBLIC - {"__version__"}
    assert set(dir(agentcube)) >= PUBLIC
    for name in PUBLIC:
        assert getattr(agentcube, name) is not None
    with pytest.raises(AttributeError, match="Nothing"):
        agentcube.Nothing  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match="Nothing"):
        agentcube.sdk.Nothing  # type: ignore[attr-defined]  # noqa: B018


def test_type_checkers_see_the_same_names() -> None:
    stub = ast.parse((ROOT / "src" / "agentcube" / "__init__.pyi").read_text())
    imported = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (listed,) = [node.value for node in stub.body if isinstance(node, ast.Assign)]
    assert imported == PUBLIC - {"__version__"}
    assert set(ast.literal_eval(listed)) == PUBLIC
    assert (ROOT / "src" / "agentcube" / "py.typed").exists()


def test_names_of_the_go_systems_sdk_are_importable() -> None:
    from agentcube.exceptions import AgentCubeError, CommandExecutionError, DataPlaneError, SessionError

    assert CommandExecutionError is agentcube.CommandExecutionError
    assert AgentCubeError is agentcube.AgentCubeError
    assert issubclass(SessionError, AgentCubeError)
    assert issubclass(DataPlaneError, AgentCubeError)


def test_importing_the_package_imports_nothing_else() -> None:
    before = _modules_after("", "-I", "-S")
    path = f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
    after = _modules_after(path + "import agentcube", "-I", "-S")
    assert after - before <= {"agentcube", "__future__"}


def test_the_http_client_is_loaded_with_the_first_client_class() -> None:
    light = _modules_after("from agentcube import AgentCubeError, CommandResult, TokenAuth, NotConfigured")
    assert not {"httpx2", "pydantic", "platformdirs", "typer"} & light
    heavy = _modules_after("from agentcube import CodeInterpreterClient")
    assert "httpx2" in heavy
    assert not {"pydantic", "platformdirs", "typer", "agentcube.model", "agentcube.sdk._async"} & heavy


def test_the_command_line_loads_no_http_client_before_it_needs_one() -> None:
    assert not {"httpx2", "yaml", "agentcube.up"} & _modules_after("import agentcube.cli.main")


@pytest.mark.parametrize("tool", ["async_to_sync.py", "cli_page.py", "sdk_page.py"])
def test_generated_files_are_what_the_tool_makes(tool: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / tool, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_described() -> None:
    page = (ROOT / "docs" / "reference" / "sdk.md").read_text("utf-8")
    described = set(re.findall(r"^### (\w+)", page, re.MULTILINE))
    names = {name.removeprefix("Async") for name in PUBLIC - {"__version__"}}
    assert names <= described | {"AgentCubeError", "Created"}
    assert set(agentcube.events.__all__) - {"CellEvent", "CellStatus", "ProcessEvent"} <= described
