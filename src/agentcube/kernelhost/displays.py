"""`display()` and MIME bundles where there is no IPython."""

from __future__ import annotations

import os
from typing import Any, Callable

_METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_pdf_": "application/pdf",
    "_repr_latex_": "text/latex",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
}

Bundle = tuple[dict[str, Any], dict[str, Any]]


def _nobody(event: str, data: dict[str, Any], metadata: dict[str, Any], **more: Any) -> None:
    pass


publish: Callable[..., None] = _nobody
"""Where displays go; set by the shell."""


def bundle(value: Any) -> Bundle:
    """Every way in which `value` can be shown, and what is to be known of these."""
    data: dict[str, Any] = {"text/plain": repr(value)}
    metadata: dict[str, Any] = {}
    if isinstance(value, type):
        return data, metadata
    whole = _call(value, "_repr_mimebundle_", include=None, exclude=None)
    if whole is not None:
        given, about = whole if isinstance(whole, tuple) else (whole, {})
        data.update(given)
        metadata.update(about)
        return data, metadata
    for method, mime in _METHODS.items():
        shown = _call(value, method)
        if isinstance(shown, tuple) and len(shown) == 2:
            shown, metadata[mime] = shown
        if shown is not None:
            data[mime] = shown
    if type(value).__module__ == "matplotlib.figure":
        from agentcube.kernelhost import inline

        data["image/png"] = inline.png(value)
    return data, metadata


def _call(value: Any, name: str, **arguments: Any) -> Any:
    """What the method of that name says; None without one, or when it fails, as IPython has it."""
    method = getattr(value, name, None)
    if not callable(method) or _has_everything(value):
        return None
    try:
        return method(**arguments)
    except NotImplementedError:
        return None


def _has_everything(value: Any) -> bool:
    """Whether `value` answers to any name (mocks, proxies), so that its methods say nothing."""
    try:
        return callable(getattr(value, "_agentcube_canary_method_should_not_exist_", None))
    except Exception:
        return True


class DisplayHandle:
    """Something displayed that can be displayed anew in its place."""

    def __init__(self, display_id: str | None = None) -> None:
        self.display_id = display_id or os.urandom(16).hex()

    def display(self, value: Any, **options: Any) -> None:
        """Show `value` under this id."""
        display(value, display_id=self.display_id, **options)

    def update(self, value: Any, **options: Any) -> None:
        """Show `value` instead of what is shown under this id."""
        update_display(value, display_id=self.display_id, **options)


def display(
    *values: Any,
    display_id: Any = None,
    raw: bool = False,
    metadata: dict[str, Any] | None = None,
    update: bool = False,
    clear: bool = False,
    **others: Any,
) -> DisplayHandle | None:
    """Show values as richly as they can be shown; with `display_id` (a name, or True) returns a handle."""
    if clear:
        clear_output(wait=True)
    handle = None
    more: dict[str, Any] = {}
    if display_id is not None:
        handle = DisplayHandle(None if display_id is True else str(display_id))
        more["display_id"] = handle.display_id
    for value in values:
        data, about = (dict(value), {}) if raw else bundle(value)
        publish(
            "update_display_data" if update else "display_data", data, {**about, **(metadata or {})}, **more
        )
    return handle


def update_display(value: Any, *, display_id: str, **options: Any) -> None:
    """Show `value` instead of what was displayed under `display_id`."""
    display(value, display_id=display_id, update=True, **options)


def clear_output(wait: bool = False) -> None:
    """Take away what the cell has shown; with `wait`, when something else is shown."""
    publish("clear_output", {}, {}, wait=wait)
