"""A backend of matplotlib that shows figures as PNG in the cell's output, for where there is no IPython."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import get_backend
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg as FigureCanvas

from agentcube.kernelhost import displays

__all__ = ["FigureCanvas", "flush", "png", "show"]


def png(figure: Any) -> bytes:
    """The figure, cropped to what is drawn."""
    target = io.BytesIO()
    if figure.canvas is None or not hasattr(figure.canvas, "print_png"):
        FigureCanvas(figure)
    figure.savefig(target, format="png", bbox_inches="tight")
    return target.getvalue()


def show(*_: Any, **__: Any) -> None:
    """Show all open figures and close them: `plt.show()`."""
    try:
        for manager in Gcf.get_all_fig_managers():
            displays.display(manager.canvas.figure)
    finally:
        Gcf.destroy_all()


def flush() -> None:
    """At the end of a cell: show what the cell has drawn and not shown."""
    if get_backend() == f"module://{__name__}":
        show()
