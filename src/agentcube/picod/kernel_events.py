"""What a kernel publishes, checked and as it goes on the wire. Nothing that comes from a kernel is trusted.

An event is kept as the members of its JSON object, ready to be sent: what a client may ask for again
is as large as it looks, and is not made twice.
"""

from __future__ import annotations

import json
import re
from typing import Any

MESSAGE_BYTES_MAX = 18 << 20  # one event of 16 MiB (kernelhost/bundles.py), and room for what is around it
HEADER_BYTES_MAX = 64 * 1024
_JSON_TOKENS_MAX = 500_000  # values of one JSON object: parsed, each takes up to 100 bytes
_BLOBS_MAX = 66
_NAME_MAX = 256
_TRACEBACK_LINES_MAX = 20_000
_DISPLAYS = ("display_data", "update_display_data", "execute_result")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]*={0,2}")
_CONTROLS = re.compile(rb"[\x00-\x1f]")

Blobs = dict[str, tuple[str, bytes]]  # kind and content by name


class Nonsense(Exception):
    """What the kernel said is no message of ours; says why, for the log and the user."""


def parse(message: bytes) -> tuple[dict[str, Any], Blobs]:
    """A message's header and what follows it. Raises Nonsense."""
    size = int.from_bytes(message[:4], "big")
    if len(message) < 4 or size > HEADER_BYTES_MAX or 4 + size > len(message):
        raise Nonsense("a message without a header")
    header = _json(message[4 : 4 + size])
    if not isinstance(header, dict) or not isinstance(header.get("op"), str):
        raise Nonsense("a message without an operation")
    listed = header.get("blobs")
    if not isinstance(listed, list) or len(listed) > _BLOBS_MAX:
        raise Nonsense("a message with a wrong list of contents")
    blobs: Blobs = {}
    start = 4 + size
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 3:
            raise Nonsense("a message with a wrong list of contents")
        name, kind, length = entry
        if not isinstance(name, str) or len(name) > _NAME_MAX or name in blobs or kind not in _KINDS:
            raise Nonsense("a message with a wrong list of contents")
        blobs[name] = (kind, message[start : start + whole(length, "length", len(message) - start)])
        start += length
    if start != len(message):
        raise Nonsense("a message of the wrong length")
    return header, blobs


def whole(value: Any, name: str, most: int) -> int:
    """A number from 0 to `most`. Raises Nonsense."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise Nonsense(f"a wrong {name}")
    return value


def flag(value: Any, name: str) -> bool:
    """True or false. Raises Nonsense."""
    if not isinstance(value, bool):
        raise Nonsense(f"a wrong {name}")
    return value


def event(header: dict[str, Any], blobs: Blobs) -> tuple[str, str]:
    """The name and the members of a published event. Raises Nonsense."""
    name = header.get("event")
    if name in _DISPLAYS:
        return name, _display(header, blobs)
    if name == "clear_output":
        return name, members(wait=flag(header.get("wait"), "wait"))
    if name == "error":
        return name, _error(blobs)
    raise Nonsense(f"an unknown event {str(name)[:40]!r}")


def members(**values: Any) -> str:
    """Members of a JSON object, without its braces."""
    return json.dumps(values, separators=(",", ":"))[1:-1]


def _display(header: dict[str, Any], blobs: Blobs) -> str:
    metadata, display_id = header.get("metadata"), header.get("display_id")
    if not isinstance(metadata, dict):
        raise Nonsense("wrong metadata")
    data = ",".join(f"{json.dumps(mime)}:{_KINDS[kind](content)}" for mime, (kind, content) in blobs.items())
    more: dict[str, Any] = {"metadata": metadata}
    if display_id is not None:
        if not isinstance(display_id, str) or len(display_id) > _NAME_MAX:
            raise Nonsense("a wrong display_id")
        more["display_id"] = display_id
    if header["event"] == "execute_result":
        more["execution_count"] = whole(header.get("execution_count"), "execution_count", 1 << 53)
    return f'"data":{{{data}}},{members(**more)}'


def _error(blobs: Blobs) -> str:
    if set(blobs) != {"name", "value", "traceback"} or any(kind != "text" for kind, _ in blobs.values()):
        raise Nonsense("an error without name, value and traceback")
    name, value, traceback = (
        blobs[key][1].decode("utf-8", "replace") for key in ("name", "value", "traceback")
    )
    lines = traceback.split("\n") if traceback else []
    if len(lines) > _TRACEBACK_LINES_MAX:
        half = _TRACEBACK_LINES_MAX // 2
        lines = [*lines[:half], "[...]", *lines[-half:]]
    return members(name=name, value=value, traceback=lines)


def _text(content: bytes) -> str:
    return json.dumps(content.decode("utf-8", "replace"))


def _base64(content: bytes) -> str:
    if not _BASE64.fullmatch(content):
        raise Nonsense("data that is no base64")
    return f'"{content.decode("ascii")}"'


def _object(content: bytes) -> str:
    if sum(content.count(mark) for mark in (b",", b":", b"[", b"{")) > _JSON_TOKENS_MAX:
        raise Nonsense("JSON of too many values")
    if not content.isascii() or _CONTROLS.search(content):
        raise Nonsense("JSON that is not in one line of ASCII")
    _json(content)
    return content.decode("ascii")


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Nonsense("something that is no JSON") from None


def _no_constant(name: str) -> None:
    raise ValueError(name)


_KINDS = {"text": _text, "base64": _base64, "json": _object}
