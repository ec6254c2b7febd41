"""Cells where there is no IPython: expressions shown, top-level await, errors that point into the cell.

Of IPython's own syntax only lines that begin with `!` and the refused `%pip` are understood.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import linecache
import platform
import re
import sys
import traceback
from collections.abc import Coroutine
from types import CodeType
from typing import Any

from agentcube.kernelhost import bundles, commands, displays, figures, loops
from agentcube.kernelhost.host import NO_EXIT, Outcome, Publish, leave_us_out

_INLINE = "module://agentcube.kernelhost.inline"
_ESCAPED = re.compile(r"^(\s*)([!%])(.*)$")
_FRAMES_MAX = 200
_RUN, _REFUSE = "__agentcube_run__", "__agentcube_refuse__"


def _nobody(members: dict[str, Any], blobs: object) -> bool:
    return False


class UsageError(Exception):
    """Something that a cell here cannot do."""

    __module__ = "__main__"  # so that its name is shown without ours


class Shell:
    """One kernel's namespace and how cells run in it."""

    def __init__(self) -> None:
        self.implementation = f"python {platform.python_version()}"
        self.count = 1
        self.publish: Publish = _nobody
        self._loops = loops.Loops()
        self._space: dict[str, Any] = {}
        self._unrecorded = 0
        self._cancelled = False
        figures.show_with(_INLINE)

    def rehearse(self) -> None:
        """See `host.Shell`: nothing is late here."""

    def prepare(self) -> None:
        """See `host.Shell`."""
        self._space = sys.modules["__main__"].__dict__
        self._space["__builtins__"] = builtins
        self._space.update({"In": [""], "Out": {}, "_": "", "__": "", "___": ""})
        displays.publish = self._publish
        for function in (displays.display, displays.update_display, displays.clear_output):
            vars(builtins)[function.__name__] = function
        vars(builtins).update({_RUN: commands.run, _REFUSE: _refuse, "exit": _stay, "quit": _stay})
        figures.obey_environment()

    def run(self, code: str, *, silent: bool, store_history: bool) -> Outcome:
        """See `host.Shell`."""
        recorded = store_history and not silent and bool(code.strip())
        name = self._name(code, recorded)
        self._cancelled = False
        error: BaseException | None = None
        try:
            self._run(code, name, silent, recorded)
        except BaseException as exc:
            error = exc
        error = self._end(error)
        if error is not None:
            self.show_error(error)
        return Outcome(ok=error is None, interrupted=isinstance(error, KeyboardInterrupt))

    def _end(self, error: BaseException | None) -> BaseException | None:
        if self._cancelled and isinstance(error, asyncio.CancelledError):
            error = KeyboardInterrupt().with_traceback(error.__traceback__)
        try:
            inline = sys.modules.get("agentcube.kernelhost.inline")
            if inline is not None:
                inline.flush()
        except BaseException as exc:
            return error or exc
        return error

    def show_error(self, error: BaseException) -> None:
        """See `host.Shell`."""
        own = traceback.TracebackException(type(error), error, _below_us(error), limit=-_FRAMES_MAX)
        text = "".join(own.format()).rstrip("\n")
        try:
            value = str(error)
        except Exception:
            value = "<the exception's text cannot be made>"
        if not self.publish(*bundles.error(type(error).__name__, value, text)):
            print(text, file=sys.stderr)  # noqa: T201  (a forked child's own output)

    def idle(self, fd: int) -> None:
        """See `host.Shell`."""
        self._loops.idle(fd)

    def _name(self, code: str, recorded: bool) -> str:
        """What the cell's file is called, so that tracebacks show its lines."""
        if recorded:
            name = f"Cell In[{self.count}]"
            inputs = self._space.setdefault("In", [""])
            if isinstance(inputs, list):
                inputs.append(code)
            self.count += 1
        else:
            self._unrecorded += 1
            name = f"Cell *{self._unrecorded}"
        linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
        return name

    def _run(self, code: str, name: str, silent: bool, recorded: bool) -> None:
        tree = _parse(code, name)
        last: ast.Expr | None = None
        if tree.body and isinstance(tree.body[-1], ast.Expr) and not silent:
            last = tree.body.pop()  # type: ignore[assignment]  # as was just asked
        parts = [_compiled(tree, name, "exec")]
        if last is not None:
            parts.append(_compiled(ast.Expression(last.value), name, "eval"))
        if any(part.co_flags & inspect.CO_COROUTINE for part in parts):
            value = self._await(self._all(parts))
        else:
            for part in parts:
                value = eval(part, self._space)  # noqa: S307  (running the user's code is the purpose)
        if last is not None and value is not None and not code.rstrip().endswith(";"):
            self._show(value, recorded)

    async def _all(self, parts: list[CodeType]) -> Any:
        """All parts of a cell that awaits somewhere: the loop runs for the others, too."""
        for part in parts:
            value = eval(part, self._space)  # noqa: S307
            if part.co_flags & inspect.CO_COROUTINE:
                value = await value
        return value

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        def interrupted() -> None:
            self._cancelled = True

        return self._loops.run(coroutine, interrupted)

    def _show(self, value: Any, recorded: bool) -> None:
        space = self._space
        data, metadata = displays.bundle(value)
        space["___"], space["__"], space["_"] = space.get("__"), space.get("_"), value
        number = self.count - 1
        outputs = space.setdefault("Out", {})
        if recorded and isinstance(outputs, dict):
            outputs[number] = value
        self._publish("execute_result", data, metadata, execution_count=number)

    def _publish(self, event: str, data: dict[str, Any], metadata: dict[str, Any], **more: Any) -> None:
        members, blobs = bundles.display(event, data, metadata, **more)
        if event == "clear_output":
            members.pop("metadata")
        if not self.publish(members, blobs) and "text/plain" in data:
            print(data["text/plain"])  # noqa: T201  (a forked child's own output)


def make() -> Shell:
    """A new shell."""
    return Shell()


def _refuse() -> None:
    """`%pip` and its kin."""
    raise UsageError(commands.NO_INSTALLER)


def _stay(code: object = None) -> None:
    """`exit()` and `quit()`."""
    print(NO_EXIT, file=sys.stderr)  # noqa: T201


def _parse(code: str, name: str) -> ast.Module:
    try:
        return _parsed(code, name)
    except SyntaxError:
        lines = code.split("\n")
        changed = [_without_escape(line) for line in lines]
        if changed == lines:
            raise
    return _parsed("\n".join(changed), name)


def _compiled(tree: ast.AST, name: str, mode: str) -> CodeType:
    code = compile(tree, name, mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)  # type: ignore[call-overload]
    assert isinstance(code, CodeType)
    return code


def _parsed(code: str, name: str) -> ast.Module:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    tree = compile(code, name, "exec", flags, dont_inherit=True)
    assert isinstance(tree, ast.Module)
    return tree


def _without_escape(line: str) -> str:
    """A line with `!command` as Python; of `%magics` only the refusal of installers is known."""
    match = _ESCAPED.match(line)
    if match is None:
        return line
    indent, escape, rest = match.groups()
    if escape == "!":
        return f"{indent}_exit_code = {_RUN}({rest.strip()!r})"
    if (rest.split() or [""])[0] in commands.INSTALLERS:
        return f"{indent}{_REFUSE}()"
    return line


def _below_us(error: BaseException) -> Any:
    """The traceback from the cell on."""
    tb = error.__traceback__
    while tb is not None and not tb.tb_frame.f_code.co_filename.startswith("Cell "):
        tb = tb.tb_next
    if tb is None and not isinstance(error, SyntaxError):
        return error.__traceback__
    leave_us_out(tb)
    return tb
