"""Heads and chunks as bytes. Whoever writes through here cannot split a message by a value."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from agentcube.http1.fields import TOKEN

REASONS = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK = b"0\r\n\r\n"

_NAME = re.compile(TOKEN).fullmatch
_VALUE = re.compile(rb"[\t -~\x80-\xff]*").fullmatch
_TARGET = re.compile(rb"[!-~]+").fullmatch

Headers = Iterable[tuple[bytes, bytes]]


def _head(first: bytes, headers: Headers) -> bytes:
    lines = [first]
    for name, value in headers:
        if _NAME(name) is None or _VALUE(value) is None:
            raise ValueError("a header name or value holds a byte that is not allowed")
        lines.append(name + b": " + value)
    lines.append(b"\r\n")
    return b"\r\n".join(lines)


def request_head(method: bytes, target: bytes, headers: Headers) -> bytes:
    """A request head with its empty line. The caller names Host and the framing fields itself.

    Raises:
        ValueError: something would not survive as one head.
    """
    if _NAME(method) is None or _TARGET(target) is None:
        raise ValueError("the method or target holds a byte that is not allowed")
    return _head(b"%b %b HTTP/1.1" % (method, target), headers)


def response_head(status: int, headers: Headers) -> bytes:
    """A response head with its empty line and the usual reason. ValueError as `request_head`."""
    return _head(b"HTTP/1.1 %d %b" % (status, REASONS.get(status, b"")), headers)


def response(status: int, headers: Headers, body: bytes) -> bytes:
    """A whole response; Content-Length is added. Not for HEAD, 1xx, 204 or 304."""
    return response_head(status, (*headers, (b"content-length", b"%d" % len(body)))) + body


def chunk(data: bytes) -> bytes:
    """`data` as one chunk; b"" stays b"", as an empty chunk would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
