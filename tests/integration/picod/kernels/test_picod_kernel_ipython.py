"""Kernels of the environment `default`: what cells give is what plain IPython gives, and figures are shown."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.picod.conftest import Keys

from agentcube.drivers.local.environments import Environments

from . import ipython_cells, plain_ipython
from .kernel import Kernel, data_of, error_of, running, text_of

pytestmark = pytest.mark.timeout(600)  # the first time the environment is built


@pytest.fixture(scope="module")
def python() -> str:
    return str(Environments().ensure("default") / "bin/python3")


@pytest.fixture(scope="module")
def kernel(keys: Keys, python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    fonts = tmp_path_factory.mktemp("matplotlib")
    with running(keys, python, env={"MPLCONFIGDIR": str(fonts)}) as picod:
        yield Kernel(picod)


def test_it_is_ipython(kernel: Kernel) -> None:
    assert kernel.made["implementation"].startswith("ipython ")


def test_cells_give_what_plain_ipython_gives(keys: Keys, python: str, tmp_path: Path) -> None:
    cells = ipython_cells.CELLS
    with running(keys, python) as picod:
        fresh = Kernel(picod)
        given = [plain_ipython.transcript(fresh.run(cell)) for cell in cells]
    expected = plain_ipython.expected(python, cells, tmp_path)
    different = {
        cell: (have, want) for cell, have, want in zip(cells, given, expected, strict=True) if have != want
    }
    assert not different, json.dumps(different, indent=1)


# Figures and tables


def png(data: dict[str, str]) -> bytes:
    return base64.b64decode(data["image/png"], validate=True)


def test_figures_are_shown_at_the_end_of_their_cell_several_too(kernel: Kernel) -> None:
    code = (
        "import matplotlib.pyplot as plt\nfor n in range(2):\n    figure, axes = plt.subplots(); axes.plot([n, 1])\n"
        "print('drawn')"
    )
    events = kernel.run(code)
    assert [event["event"] for event in events[1:-1] if event["event"] != "stdout"] == ["display_data"] * 2
    assert text_of(events) == "drawn\n"
    for data in data_of(events):
        assert data["text/plain"] == "<Figure size 640x480 with 1 Axes>"
        assert png(data).startswith(b"\x89PNG\r\n")
    assert kernel.value("plt.get_fignums()") == "[]"


def test_show_flushes_where_it_stands(kernel: Kernel) -> None:
    code = "plt.plot([1, 2]); print('a'); plt.show(); print('b'); plt.plot([2, 1]); None"
    kernel.run("import matplotlib.pyplot as plt")
    events = kernel.run(code)
    kinds = [kind for kind, _ in itertools.groupby(event["event"] for event in events[1:-1])]
    assert kinds == ["stdout", "display_data", "stdout", "display_data"]


def test_a_figure_is_a_value_too_and_other_backends_are_respected(kernel: Kernel) -> None:
    kernel.run("from matplotlib.figure import Figure\nfigure = Figure(); figure.subplots().plot([1, 2])")
    assert png(data_of(kernel.run("figure"), "execute_result")[0])
    kernel.run("import matplotlib; before = matplotlib.get_backend()")
    events = kernel.run(
        "matplotlib.use('agg'); import matplotlib.pyplot as plt; plt.plot([1]); plt.close('all')"
    )
    assert data_of(events) == []
    assert png(data_of(kernel.run("%matplotlib inline\nplt.plot([1, 2])\nNone"))[0])


def test_tables_are_text_and_html(kernel: Kernel) -> None:
    events = kernel.run("import pandas as pd; pd.DataFrame({'a': [1]})")
    (data,) = data_of(events, "execute_result")
    assert data["text/plain"] == "   a\n0  1"
    assert "<table" in data["text/html"]


def test_errors_in_drawing_are_told(kernel: Kernel) -> None:
    kernel.run("import matplotlib.pyplot as plt")
    events = kernel.run("plt.plot([1]); plt.title('$\\\\nonsense{$'); None")
    assert any("nonsense" in event.get("value", "") for event in events)
    assert kernel.value("1") == "1"


def test_nothing_is_left_in_the_workspace(kernel: Kernel) -> None:
    kernel.run("import matplotlib.pyplot as plt; plt.plot([1]); %who_ls")
    assert not list(kernel.picod.workspace.iterdir())


def test_awaiting_is_interrupted_at_the_line_that_awaits(kernel: Kernel) -> None:
    code = "import asyncio\nasync def long():\n    await asyncio.sleep(60)\nawait long()"
    events = kernel.run(code, timeout="300ms")
    assert events[-1]["status"] == "timed_out"
    assert events[-1]["state_lost"] is False
    error = error_of(events)
    assert error["name"] == "KeyboardInterrupt"
    assert "----> 4 await long()" in error["traceback"]
    assert kernel.value("await asyncio.sleep(0, 'next')") == "'next'"


def test_code_in_c_is_interrupted_if_it_checks_for_signals(kernel: Kernel) -> None:
    end = kernel.run(
        "import re; re.match('(a+)+$', 'a' * 50 + 'b')", timeout="300ms", interrupt_grace="300s"
    )[-1]
    assert (end["status"], end["state_lost"]) == ("timed_out", False)


def test_code_in_c_that_does_not_is_killed(kernel: Kernel) -> None:
    other = Kernel(kernel.picod)
    end = other.run("sum(range(10 ** 13))", timeout="200ms", interrupt_grace="200ms")[-1]
    assert (end["status"], end["state_lost"]) == ("timed_out", True)
    assert kernel.value("1") == "1"


def test_shell_lines_take_variables_and_are_interrupted(kernel: Kernel) -> None:
    assert kernel.out("name = 'world'\n!echo hello {name} $name; echo err >&2") == "hello world world\n"
    events = kernel.run("!echo begun; sleep 60\nprint('not reached')", timeout="500ms")
    assert events[-1]["status"] == "timed_out"
    assert text_of(events) == "begun\n"
    told = "\n".join(error_of(events)["traceback"])
    assert "begun; sleep 60" in told
    assert "File " not in told, "how we wait for a program is nobody's concern"
