"""The page at /docs: the OpenAPI document as plain HTML.

Self-contained: no script, nothing from elsewhere, so that it works on a machine without the internet.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_CODE = re.compile("`([^`]+)`")
_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
code,pre{font:14px/1.4 ui-monospace,monospace;background:#f4f4f2;border-radius:3px}code{padding:.1em .3em}
pre{padding:.8em;overflow:auto}h2{margin-top:2.5rem;border-bottom:1px solid #ccc}h3{margin:1.6rem 0 .3rem}
h3 b{display:inline-block;min-width:4.5rem}table{border-collapse:collapse}td,th{padding:.15rem .8rem .15rem 0;
text-align:left;vertical-align:top}summary{cursor:pointer}p{margin:.4rem 0}.tag{color:#666;font-weight:normal}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}code,pre{background:#262626}
a{color:#8ab4f8}}"""

HEADERS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'"}


def page(document: Mapping[str, Any]) -> str:
    """The whole page."""
    title = f"{document['info']['title']} {document['info']['version']}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><h1>{escape(title)}</h1>'
        f"{_text(document['info'].get('description', ''))}"
        '<p>For programs: <a href="/openapi.json">openapi.json</a>. Calls marked <i>key</i> need the header '
        "<code>Authorization: Bearer API-KEY</code>.</p>"
        f"{''.join(_operations(document['paths']))}{''.join(_schemas(document))}</html>"
    )


def _operations(paths: Mapping[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for path, operations in paths.items():
        for method, operation in operations.items():
            by_tag.setdefault(operation.get("tags", ["Other"])[0], []).append((method, path, operation))
    for tag, entries in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>"
        for method, path, operation in entries:
            yield _operation(method, path, operation)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    key = ' <span class="tag"><i>key</i></span>' if operation.get("security") else ""
    parts = [f"<h3><b>{escape(method.upper())}</b> <code>{escape(path)}</code>{key}</h3>"]
    parts += [_text(operation.get("summary", "")), _text(operation.get("description", ""))]
    rows = [
        (f"{p['name']} ({p['in']})", p.get("description", "") or _type(p.get("schema", {})))
        for p in operation.get("parameters", [])
    ]
    body = operation.get("requestBody", {}).get("content", {})
    rows += [("body", f"{media}: {_type(content.get('schema', {}))}") for media, content in body.items()]
    for status, answer in operation.get("responses", {}).items():
        types = {_type(c["schema"]) for c in answer.get("content", {}).values() if c.get("schema")}
        named = f" ({', '.join(sorted(types))})" if types else ""
        rows.append((status, answer.get("description", "") + named))
    cells = "".join(f"<tr><td>{escape(name)}<td>{_marked(what)}" for name, what in rows)
    return f"{''.join(parts)}<table>{cells}</table>"


def _schemas(document: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>Bodies</h2>"
    for name, schema in sorted(document.get("components", {}).get("schemas", {}).items()):
        text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        yield f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary><pre>{text}</pre></details>'


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a word or two."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return " or ".join(dict.fromkeys(_type(option) for option in schema[choice]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("type") or schema.get("title") or "anything")


def _text(text: str) -> str:
    return f"<p>{_marked(text)}</p>" if text else ""


def _marked(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))
