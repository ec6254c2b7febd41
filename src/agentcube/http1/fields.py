"""Field lines: one line in, name and value out, and the few values that decide about framing.

Strict where RFC 9112 lets parsers differ, because two parsers that read one message differently
are how requests are smuggled. Knows nothing of requests, responses or whole heads.
"""

from __future__ import annotations

import re

from agentcube.http1.errors import ProtocolError

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
"""RFC 9110 §5.6.2."""

_LINE = re.compile(rb"(" + TOKEN + rb"):([\t -~\x80-\xff]*)").fullmatch
_DIGITS = re.compile(rb"[0-9]{1,18}").fullmatch  # 18 digits fit a signed 64-bit integer, and are an exabyte
_HOST = re.compile(rb"[!-~]*").fullmatch
_HOST_FORBIDDEN = re.compile(rb"[/\\@?#,\"<> ]").search

HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    )
)
"""Fields that end at the next hop (RFC 9110 §7.6.1), beside those that `Connection` names."""


def parse_field(line: bytes) -> tuple[bytes, bytes]:
    """The lower-case name and the trimmed value of one field line (without its CRLF).

    Raises:
        ProtocolError: 400 for obs-fold, space before the colon, an empty name, or a control byte,
            bare CR or bare LF anywhere.
    """
    match = _LINE(line)
    if match is None:
        raise ProtocolError(400, _why_bad(line))
    name, value = match.groups()
    return name.lower(), value.strip(b" \t")


def _why_bad(line: bytes) -> str:
    if line[:1] in (b" ", b"\t"):
        return "a folded header line is not accepted"
    name, colon, _ = line.partition(b":")
    if not colon:
        return "a header line has no colon"
    if name[-1:] in (b" ", b"\t"):
        return "whitespace before the colon of a header"
    if re.fullmatch(TOKEN, name) is None:
        return "a header name holds a byte that is not allowed"
    return "a header value holds a control byte"


def parse_content_length(value: bytes) -> int:
    """The length. A list, a sign, or anything but 1 to 18 digits is a ProtocolError 400."""
    if _DIGITS(value) is None:
        raise ProtocolError(400, "malformed Content-Length")
    return int(value)


def check_transfer_encoding(value: bytes) -> None:
    """Return when the one coding is `chunked`.

    Raises:
        ProtocolError: 501 for a coding that we do not know; 400 when `chunked` is not the one and
            last coding (RFC 9112 §6.1), as then the end of the message cannot be told.
    """
    codings = [coding.strip(b" \t").lower() for coding in value.split(b",")]
    if codings == [b"chunked"]:
        return
    if any(coding != b"chunked" for coding in codings):
        raise ProtocolError(501, "the only transfer coding understood is chunked")
    raise ProtocolError(400, "chunked applied more than once")


def check_host(value: bytes) -> None:
    """Raise ProtocolError 400 for a Host that could be read as anything but host and port."""
    if _HOST(value) is None or _HOST_FORBIDDEN(value) is not None:
        raise ProtocolError(400, "malformed Host")


def options(value: bytes) -> frozenset[bytes]:
    """The lower-case members of a comma-separated list such as `Connection`."""
    return frozenset(member.strip(b" \t").lower() for member in value.split(b",")) - {b""}


def duplicate(name: str) -> ProtocolError:
    """The error for a second line of a field that may appear once."""
    return ProtocolError(400, f"more than one {name}")
