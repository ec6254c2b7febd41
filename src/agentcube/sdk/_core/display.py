"""Results of cells, and how a notebook shows them.

What comes out of a sandbox is not trusted: none of it may run with the notebook's origin. HTML and SVG go into frames
and images that have an origin of their own and no network; types that front ends give powers to stay out of bundles.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_PASSED_ON = ("text/plain", "image/png", "image/jpeg", "application/json")
"""What front ends only draw. Others (JavaScript, Markdown, LaTeX, widgets) may run, or fetch, with their origin."""

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; media-src data: blob:; form-action 'none'"
)
ERROR_COLOUR = "#a40000"
_REPR_MAX = 60
_FRAME_PX_MIN, _FRAME_PX_MAX, _ROW_PX = 60, 600, 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One thing that a cell displayed, in one or more forms. `data` is a MIME bundle as Jupyter has them.

    Text and JSON types hold text and values, all others base64. `is_value`: it is the value of the cell's last
    expression.
    """

    data: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    display_id: str | None = None
    is_value: bool = False
    execution_count: int | None = None

    @property
    def formats(self) -> tuple[str, ...]:
        """The MIME types that there are."""
        return tuple(self.data)

    def get(self, mime: str) -> str | bytes | Any | None:
        """One form: text for text types, a value for JSON, bytes for all others; None where there is none."""
        value = self.data.get(mime)
        if (
            not isinstance(value, str)
            or mime.startswith("text/")
            or mime in ("image/svg+xml", "application/javascript")
        ):
            return value
        if mime == "application/json" or mime.endswith("+json"):
            return value
        return _decoded(value)

    @property
    def text(self) -> str | None:
        """As plain text."""
        return self._text("text/plain")

    @property
    def html(self) -> str | None:
        """As HTML. It comes from the sandbox: show it only where it can do no harm."""
        return self._text("text/html")

    @property
    def markdown(self) -> str | None:
        """As Markdown."""
        return self._text("text/markdown")

    @property
    def latex(self) -> str | None:
        """As LaTeX."""
        return self._text("text/latex")

    @property
    def svg(self) -> str | None:
        """As an SVG document."""
        return self._text("image/svg+xml")

    @property
    def javascript(self) -> str | None:
        """As JavaScript, to read: nothing runs it."""
        return self._text("application/javascript")

    @property
    def png(self) -> bytes | None:
        """As a PNG file."""
        return _decoded(self.data.get("image/png"))

    @property
    def jpeg(self) -> bytes | None:
        """As a JPEG file."""
        return _decoded(self.data.get("image/jpeg"))

    @property
    def pdf(self) -> bytes | None:
        """As a PDF file."""
        return _decoded(self.data.get("application/pdf"))

    @property
    def json(self) -> Any:
        """As a JSON value; None where there is none, and for null."""
        return self.data.get("application/json")

    def _text(self, mime: str) -> str | None:
        value = self.data.get(mime)
        return value if isinstance(value, str) else None

    def __repr__(self) -> str:
        forms = ", ".join(f"{mime}: {_shortened(value)}" for mime, value in self.data.items())
        return f"<{'Value' if self.is_value else 'Display'} {forms or 'of nothing'}>"

    def __str__(self) -> str:
        return self.text if self.text is not None else f"<{', '.join(self.data) or 'nothing'}>"

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """For Jupyter: see the module."""
        shown: dict[str, Any] = {mime: self.data[mime] for mime in _PASSED_ON if mime in self.data}
        if self.html is not None:
            shown["text/html"] = framed(self.html)
        elif self.svg is not None:
            shown["text/html"] = image("image/svg+xml", self.svg.encode("utf-8", "replace"))
        return shown, {mime: _size(self.metadata.get(mime)) for mime in _IMAGES if mime in shown}

    def as_html(self) -> str:
        """The best form, as HTML that is safe to put into any page."""
        if self.html is not None:
            return framed(self.html)
        for mime in _IMAGES:
            content = _decoded(self.data.get(mime))
            if content is not None:
                return image(mime, content)
        if self.svg is not None:
            return image("image/svg+xml", self.svg.encode("utf-8", "replace"))
        if self.text is None and "application/json" in self.data:
            return preformatted(json.dumps(self.json, indent=2, ensure_ascii=False))
        return preformatted(str(self))


def framed(document: str) -> str:
    """An HTML document in a frame: its scripts run, in an origin of nobody's, and reach no network."""
    rows = document.count("<tr") + document.count("<p") + document.count("<br") + document.count("<div")
    height = max(_FRAME_PX_MIN, min(_FRAME_PX_MAX, _ROW_PX * (rows + 1)))
    inside = (
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><meta charset="utf-8">{document}'
    )
    return (
        f'<iframe sandbox="allow-scripts" referrerpolicy="no-referrer" srcdoc="{html.escape(inside)}" '
        f'style="width:100%;height:{height}px;border:0;resize:vertical;overflow:auto;background:#fff"></iframe>'
    )


def image(mime: str, content: bytes) -> str:
    """A picture as part of a page. As a picture, SVG runs no scripts and fetches nothing."""
    return (
        f'<img src="data:{mime};base64,{base64.b64encode(content).decode("ascii")}" style="max-width:100%">'
    )


def preformatted(text: str, *, colour: str = "") -> str:
    """Text as it stands, as part of a page."""
    style = f' style="color:{colour}"' if colour else ""
    return f"<pre{style}>{html.escape(text)}</pre>"


def _shortened(value: object) -> str:
    if isinstance(value, str) and len(value) > _REPR_MAX:
        return f"{value[:_REPR_MAX]!r}… ({len(value)} characters)"
    return repr(value)


def _size(metadata: object) -> dict[str, int]:
    """What a front end may know of an image: how large to draw it."""
    said = metadata if isinstance(metadata, dict) else {}
    return {name: said[name] for name in ("width", "height") if isinstance(said.get(name), int)}


def _decoded(value: object) -> bytes | None:
    if not isinstance(value, str):
        return None
    try:
        return base64.b64decode(value)
    except ValueError:  # binascii.Error, or not ASCII
        return None
