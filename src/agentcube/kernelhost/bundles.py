"""MIME bundles on their way to PicoD: texts as they are, bytes in base64, objects as JSON; all of bounded size."""

from __future__ import annotations

import base64
import binascii
import builtins
import math
from collections.abc import Mapping
from json import dumps
from typing import Any

from agentcube.kernelhost.channel import Blob

__builtins__ = dict(vars(builtins))  # type: ignore[assignment]  # ours: the user may redefine what is common

EVENT_BYTES_MAX = 16 << 20
"""Of one event as JSON; larger data is left out, and a text says so."""

JSON_TOKENS_MAX = 500_000
"""Values in one JSON object: PicoD checks it, and pays for every value."""

ERROR_BYTES_MAX = 1 << 20  # of an error's message, and of its traceback
METADATA_BYTES_MAX = 16 * 1024
_MIME_MAX = 64  # types in one bundle
_NAME_MAX = 256
_DEPTH_MAX = 64


def display(
    event: str,
    data: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
    **more: Any,
) -> tuple[dict[str, Any], list[Blob]]:
    """The event `event` (`display_data`, …) with this data, as the channel takes it."""
    blobs: list[Blob] = []
    left_out: list[str] = []
    room = EVENT_BYTES_MAX - 2 * METADATA_BYTES_MAX
    for mime, value in list(data.items())[:_MIME_MAX]:
        mime = str(mime)[:_NAME_MAX]
        blob, size = _blob(mime, value)
        if blob is not None and size <= room:
            room -= size
            blobs.append(blob)
        else:
            left_out.append(f"{mime} ({size >> 20} MiB)" if blob is not None else mime)
    if left_out:
        note = f"[left out, too large for one output: {', '.join(left_out)}; save it to a file instead]"
        texts = [blob for blob in blobs if blob[0] == "text/plain"]
        if texts:
            blobs.remove(texts[0])
            note = f"{texts[0][2].decode('utf-8', 'replace')}\n{note}"
        blobs.append(("text/plain", "text", note.encode("utf-8", "replace")))
    return {"event": event, "metadata": _metadata(metadata), **more}, blobs


def error(name: str, value: str, traceback: str) -> tuple[dict[str, Any], list[Blob]]:
    """The event `error`; `traceback` is text, its lines are told apart by PicoD."""
    blobs: list[Blob] = [
        ("name", "text", _clipped(name)),
        ("value", "text", _clipped(value)),
        ("traceback", "text", _clipped(traceback)),
    ]
    return {"event": "error"}, blobs


def _blob(mime: str, value: Any) -> tuple[Blob | None, int]:
    """The value as it travels and its size in JSON; None for one that has no JSON."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        encoded = base64.b64encode(value)
        return (mime, "base64", encoded), len(encoded)
    if isinstance(value, str):
        if _is_binary(mime):
            compact = "".join(value.split())
            if _is_base64(compact):
                return (mime, "base64", compact.encode("ascii")), len(compact)
        content = value.encode("utf-8", "replace")
        # What JSON makes of it: `\uXXXX` for two or three bytes, and for control characters.
        size = len(content) if len(content) == len(value) and value.isprintable() else len(dumps(value))
        return (mime, "text", content), size
    try:
        content = dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
    except (TypeError, ValueError, RecursionError):
        try:
            content = dumps(_plain(value, 0), separators=(",", ":")).encode("ascii")
        except Exception:
            return None, 0
    if sum(content.count(mark) for mark in (b",", b":", b"[", b"{")) > JSON_TOKENS_MAX:
        return None, 0
    return (mime, "json", content), len(content)


def _is_binary(mime: str) -> bool:
    return (
        mime.startswith(("image/", "audio/", "video/", "font/")) and not mime.endswith("+xml")
    ) or mime in (
        "application/pdf",
        "application/octet-stream",
        "application/zip",
    )


def _is_base64(text: str) -> bool:
    try:
        binascii.a2b_base64(text.encode("ascii"))
        return True
    except (ValueError, UnicodeEncodeError):
        return False


def _plain(value: Any, depth: int) -> Any:
    """`value` as JSON can say it: no NaN, only texts as keys, and texts of what else there is."""
    if depth > _DEPTH_MAX:
        return "…"
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(one, depth + 1) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode("ascii")
    return str(value)


def _metadata(metadata: Mapping[str, Any] | None) -> Any:
    try:
        plain = _plain(metadata or {}, 0)
        return plain if len(dumps(plain)) <= METADATA_BYTES_MAX else {}
    except Exception:
        return {}


def _clipped(text: str) -> bytes:
    content = text.encode("utf-8", "replace")
    if len(content) <= ERROR_BYTES_MAX:
        return content
    half = ERROR_BYTES_MAX // 2
    return content[:half] + b"\n[...]\n" + content[-half:]
