"""Imports the libraries of an environment in its zygote, and uses each once.

What a library does at its first use (compile expressions, build tables, import half of itself late) is then
done for every kernel. Nothing of a tenant is here; the operator chose the modules.
"""

from __future__ import annotations

import ctypes
import importlib
import io
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from agentcube.drivers.local.inside import confine

ONE_THREAD: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            "OPENBLAS_NUM_THREADS",
            "OMP_NUM_THREADS",
            "MKL_NUM_THREADS",
            "BLIS_NUM_THREADS",
            "NUMEXPR_MAX_THREADS",
        ),
        "1",
    )
)
"""Environment for the imports: a library that starts threads makes the zygote useless (fork copies one)."""


class PreloadFailed(Exception):
    """The environment cannot be preloaded; says which module, and why."""


def load(modules: Sequence[str], host: str) -> None:
    """Import `modules`, use those that we know, and let `host` (the kernels' module) get ready too.

    Raises:
        PreloadFailed: an import failed, or something started a thread.
    """
    for name in modules:
        _try(f"preload {name}", lambda name=name: importlib.import_module(name))  # type: ignore[misc]  # a lambda's default has no type
    for name, use in _USES.items():
        if name in sys.modules:
            _try(f"use {name}", use)
    if host:
        _try("load the kernel host", lambda: _warm(host))
    logging.root.handlers.clear()  # PicoD and kernels have their own ideas of where logs go
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        raise PreloadFailed(f"cannot preload {', '.join(modules)}: it started {threads - 1} threads")
    confine.limit_written_files(None)
    _return_free_memory()


def _try(step: str, act: Callable[[], object]) -> None:
    try:
        act()
    except (Exception, SystemExit) as exc:
        raise PreloadFailed(f"cannot {step}: {type(exc).__name__}: {exc}") from exc


def _warm(host: str) -> None:
    warm = getattr(importlib.import_module(host), "warm", None)
    if warm is not None:
        warm()


def _return_free_memory() -> None:
    """Fewer pages are fewer page table entries to copy at each fork. glibc only."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _use_pandas() -> None:
    pandas: Any = importlib.import_module("pandas")
    frame = pandas.read_csv(io.StringIO("name,day,x\na,2026-01-01,1.5\nb,2026-01-02,2\na,2026-01-03,\n"))
    frame["day"] = pandas.to_datetime(frame["day"])
    repr(frame), frame.to_html(), frame.describe(), frame.dtypes, frame.head()
    frame.groupby("name").x.mean(), frame.sort_values("x"), frame.set_index("day").x.rolling(2).sum()
    (
        frame.merge(frame, on="name"),
        frame.pivot_table(index="name", values="x"),
        frame.to_csv(),
        frame.to_json(),
    )


def _use_numpy() -> None:
    numpy: Any = importlib.import_module("numpy")
    generator = numpy.random.default_rng(0)
    matrix = generator.random((8, 8))
    numpy.linalg.solve(matrix, matrix @ matrix), numpy.fft.fft(matrix), repr(matrix), numpy.linalg.svd(matrix)


def _use_matplotlib() -> None:
    importlib.import_module("matplotlib.pyplot")
    agg: Any = importlib.import_module("matplotlib.backends.backend_agg")
    figure: Any = importlib.import_module("matplotlib.figure").Figure()
    # Not by pyplot, which would choose a backend for good: kernels have their own.
    agg.FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([1, 2], [2, 1], label="line")
    axes.set_title("title"), axes.legend(), axes.grid()
    axes.scatter([1, 2], [2, 1]), axes.bar([1, 2], [2, 1])
    figure.savefig(io.BytesIO(), format="png", bbox_inches="tight")


def _use_ipython() -> None:
    importlib.import_module("IPython.core.interactiveshell")
    importlib.import_module("IPython.display")


_USES: Mapping[str, Callable[[], None]] = MappingProxyType(
    {"IPython": _use_ipython, "numpy": _use_numpy, "pandas": _use_pandas, "matplotlib": _use_matplotlib}
)
"""First uses of libraries that most kernels have; the order is the order in which they run."""
