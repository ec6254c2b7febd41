"""Lets pyplot draw into the cell's output, unless the user chooses otherwise; costs nothing while it is not used."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def show_with(backend: str) -> None:
    """Let `backend` be what matplotlib draws with, as soon as it is imported. May be called again."""
    matplotlib = sys.modules.get("matplotlib")
    if matplotlib is not None:
        _choose(matplotlib, backend)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(backend))  # not by MPLBACKEND: programs inherit that


def obey_environment() -> None:
    """Let MPLBACKEND count, where matplotlib was imported before there was one."""
    chosen, matplotlib = os.environ.get("MPLBACKEND"), sys.modules.get("matplotlib")
    if chosen and matplotlib is not None:
        _choose(matplotlib, chosen)


def _choose(matplotlib: Any, backend: str) -> None:
    try:
        matplotlib.rcParams["backend"] = backend
    except Exception:  # noqa: S110  (a matplotlib that does not know it draws as it likes)
        pass


class _AfterImport:
    """A finder that finds nothing but matplotlib, once, and sets its backend after its import."""

    def __init__(self, backend: str) -> None:
        self._backend = backend

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "matplotlib" or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute, loader = spec.loader.exec_module, spec.loader

        def execute_and_choose(module: ModuleType) -> None:
            del loader.exec_module  # the class's own again
            execute(module)
            if not os.environ.get("MPLBACKEND"):
                _choose(module, self._backend)

        loader.exec_module = execute_and_choose  # type: ignore[method-assign]
        return spec
