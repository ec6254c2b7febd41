"""Makes docs/reference/sdk.md from the SDK's docstrings and signatures. `--check`: only say whether it differs."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "sdk.md"
SDK = ROOT / "src" / "agentcube" / "sdk"

HEAD = """<!-- Made by tools/sdk_page.py from the code. Do not edit: run `make docs`. -->
# SDK

Shown is the sync half. The async half has the same names with `Async` in front of every class that does I/O, and
`await`, `async with` and `async for` where one waits; `close` of streams, processes, terminals and open files is
`aclose` there. How to use it: [the guide](../how-to/use-the-sdk.md).
"""

# Title, and for each module of the SDK the names to show; "*" are all public classes in the order of the file.
SECTIONS: tuple[tuple[str, tuple[tuple[str, tuple[str, ...]], ...]], ...] = (
    ("Sandboxes", (("_sync/sandbox.py", ("Sandbox",)),)),
    (
        "Code",
        (
            ("_sync/kernels.py", ("Kernels", "Kernel")),
            ("_core/execution.py", ("Execution",)),
            ("_core/display.py", ("Result",)),
        ),
    ),
    (
        "Commands and processes",
        (
            ("_sync/commands.py", ("Commands",)),
            ("_sync/process.py", ("Process",)),
            ("_core/results.py", ("CommandResult",)),
        ),
    ),
    ("Terminals", (("_sync/terminal.py", ("Pty", "Terminal")),)),
    (
        "Files",
        (
            ("_sync/files.py", ("Files", "Watch")),
            ("_sync/file.py", ("FileReader", "FileWriter")),
            ("_core/results.py", ("FileInfo", "Transfer")),
        ),
    ),
    ("Ports", (("_sync/ports.py", ("Ports",)), ("_core/ports.py", ("PortInfo", "ShareLink")))),
    ("Events", (("_sync/_stream.py", ("EventStream",)), ("_core/events.py", ("*",)))),
    ("What is described", (("_core/processes.py", ("ProcessInfo",)), ("_core/kernels.py", ("KernelInfo",)))),
    (
        "Management",
        (
            ("_sync/management.py", ("AgentCube",)),
            ("_sync/sessions.py", ("Sessions",)),
            ("_sync/management.py", ("Templates", "Pools")),
            ("_core/results.py", ("SessionInfo", "TemplateInfo", "PoolInfo")),
        ),
    ),
    (
        "Clients of the Go system's kind",
        (
            ("_sync/code_interpreter.py", ("CodeInterpreterClient",)),
            ("_sync/agent_runtime.py", ("AgentRuntimeClient",)),
        ),
    ),
    (
        "Authentication",
        (("_core/auth.py", ("AuthProvider", "TokenAuth")), ("_sync/auth.py", ("ServiceAccountAuth",))),
    ),
    ("Errors that arise in the client", (("_core/errors.py", ("*",)),)),
)
INTERNAL = {"expect_end", "of"}  # public only among the SDK's modules
CONSTRUCTED = {
    "Sandbox",
    "AgentCube",
    "CodeInterpreterClient",
    "AgentRuntimeClient",
    "TokenAuth",
    "ServiceAccountAuth",
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, sources in SECTIONS:
        parts.append(f"\n## {title}\n")
        for path, names in sources:
            tree = ast.parse((SDK / path).read_text("utf-8"))
            classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
            shown = [name for name in classes if not name.startswith("_")] if names == ("*",) else names
            module = importlib.import_module("agentcube.sdk." + path.removesuffix(".py").replace("/", "."))
            for name in shown:
                parts.extend(described(classes[name], module))
    return "".join(parts)


def described(node: ast.ClassDef, module: ModuleType) -> Iterator[str]:
    """A class: its docstring, its fields, its methods."""
    bases = ", ".join(
        ast.unparse(base) for base in node.bases if ast.unparse(base) not in ("Protocol", "ABC")
    )
    yield f"\n### {node.name}{f' ({bases})' if bases else ''}\n\n{prose(ast.get_docstring(node))}\n"
    fields = [
        member for member in node.body if isinstance(member, ast.AnnAssign) and _is_public(member.target)
    ]
    if fields and any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        listed = ", ".join(f"`{ast.unparse(f.target)}: {ast.unparse(f.annotation)}`" for f in fields)
        yield f"\nFields: {listed}\n"
    for member in node.body:
        if isinstance(member, ast.FunctionDef) and _is_shown(node, member):
            yield from _method(node, member, module)


def _is_public(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) and not target.id.startswith("_")


def _is_shown(node: ast.ClassDef, member: ast.FunctionDef) -> bool:
    if member.name == "__init__":
        return node.name in CONSTRUCTED
    return not member.name.startswith("_") and member.name not in INTERNAL


def _method(node: ast.ClassDef, member: ast.FunctionDef, module: ModuleType) -> Iterator[str]:
    decorators = [ast.unparse(decorator) for decorator in member.decorator_list]
    arguments = _arguments(member, module, bound="staticmethod" not in decorators)
    returns = f" -> {ast.unparse(member.returns)}" if member.returns is not None else ""
    if "property" in decorators:
        head = f"{member.name}{returns.replace(' ->', ':')}"
    elif member.name == "__init__":
        head = f"{node.name}({arguments})"
    else:
        head = f"{node.name if 'classmethod' in decorators else ''}.{member.name}({arguments}){returns}"
    said = prose(ast.get_docstring(member)).replace("\n", "\n  ").replace("\n  \n", "\n\n")
    yield f"\n- `{head}`" + (f"  \n  {said}\n" if said else "\n")


def _arguments(member: ast.FunctionDef, module: ModuleType, *, bound: bool) -> str:
    """The parameters, without `self`, and with the values of constants instead of their names."""
    args = member.args
    for default in filter(None, (*args.defaults, *args.kw_defaults)):
        if isinstance(default, ast.Name):
            value = getattr(module, default.id)
            args.defaults = [ast.Constant(value) if d is default else d for d in args.defaults]
            args.kw_defaults = [ast.Constant(value) if d is default else d for d in args.kw_defaults]
    if bound:
        (args.posonlyargs or args.args).pop(0)
    return re.sub(r"(: [^=]+?)=", r"\1 = ", ast.unparse(args))


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: its code indented by four becomes a block, `Raises:` a sentence."""
    if not docstring:
        return ""
    text = re.sub(r"\n\nRaises:\n", "\n\nRaises ", docstring)
    text = re.sub(r"(?m)^Raises     (\w+)", r"Raises \1", text)
    lines, block = [], False
    for line in text.splitlines():
        code = line.startswith("    ") and not line.startswith("    " * 2 + " ")
        if code and not block and (not lines or lines[-1] == ""):
            lines.append("```python")
            block = True
        elif block and not line.startswith("    "):
            while lines[-1] == "":
                lines.pop()
            lines += ["```", ""] if line == "" else ["```"]
            block = False
            if line == "":
                continue
        lines.append(line[4:] if block else line)
    return "\n".join(lines).strip()


def main(arguments: list[str]) -> int:
    """Write the page, or with `--check` say whether it is stale and return 1."""
    text = page()
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text("utf-8") == text:
            return 0
        print(f"{PAGE.name} is not what tools/sdk_page.py makes; run it", file=sys.stderr)
        return 1
    PAGE.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
