"""Who a client is when a proxy of ours stands before the Router: PROXY protocol and X-Forwarded-*. Pure.

Both say what anybody could say, so both count only from addresses that the operator named.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from agentcube import http1
from agentcube.errors import Invalid

if TYPE_CHECKING:
    from agentcube.router.heads import Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PREFACE_BYTES_MAX = 2048
"""Longest PROXY header that is read: v1 has 107 bytes at most, v2 some hundred with its usual extensions."""

HOPS_MAX = 32
"""Proxies named in X-Forwarded-For that are passed on; the nearest are kept."""

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
_V1 = re.compile(
    rb"PROXY (?:UNKNOWN[ -~]*|TCP([46]) ([0-9a-fA-F.:]+) ([0-9a-fA-F.:]+) [0-9]{1,5} [0-9]{1,5})\r\n"
)
_V1_BYTES_MAX = 107
_V2_HEAD = struct.Struct("!12sBBH")
_V2_ADDRESSES = {1: (socket.AF_INET, 4), 2: (socket.AF_INET6, 16)}  # family: how its addresses are written
_PP2_SSL, _PP2_CLIENT_SSL = 0x20, 0x01


class BadPreface(Exception):
    """What came instead of a PROXY header."""


class Origin(NamedTuple):
    """Where a connection comes from. `address` "" is the peer itself (a proxy's own health check, say)."""

    address: str
    tls: bool


def networks(names: Sequence[str]) -> tuple[Network, ...]:
    """Addresses and networks such as "10.0.0.0/8". Raises Invalid."""
    try:
        return tuple(ipaddress.ip_network(name) for name in names)
    except ValueError as exc:
        raise Invalid(f"trusted proxy {exc}") from None


def is_within(address: str, known: Sequence[Network]) -> bool:
    """Whether `address` lies in one of the networks; text that is no address does not."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(ip, "ipv4_mapped", None)  # how a dual-stack listener sees IPv4
    return any((mapped or ip) in network for network in known)


def read_preface(data: bytes) -> tuple[int, Origin] | None:
    """The length of the PROXY header that `data` begins with, and what it says; None: more bytes are needed.

    Versions 1 and 2 of HAProxy's PROXY protocol (proxy-protocol.txt).

    Raises:
        BadPreface: no header, a malformed or an overlong one.
    """
    if data[:1] == b"P":
        return _read_v1(data)
    if data.startswith(_SIGNATURE[: len(data)]):
        return _read_v2(data)
    raise BadPreface


def _read_v1(data: bytes) -> tuple[int, Origin] | None:
    end = data.find(b"\r\n", 0, _V1_BYTES_MAX) + 2
    if end < 2:
        if len(data) >= _V1_BYTES_MAX or not data.startswith(b"PROXY "[: len(data)]):
            raise BadPreface
        return None
    match = _V1.fullmatch(data[:end])
    if match is None:
        raise BadPreface
    version, source, target = match.groups()
    if version is None:
        return end, Origin("", tls=False)
    try:
        addresses = [ipaddress.ip_address(text.decode("ascii")) for text in (source, target)]
    except ValueError:
        raise BadPreface from None
    if any(address.version != int(version) for address in addresses):
        raise BadPreface
    return end, Origin(str(addresses[0]), tls=False)


def _read_v2(data: bytes) -> tuple[int, Origin] | None:
    if len(data) < _V2_HEAD.size:
        return None
    _, version_command, family_protocol, length = _V2_HEAD.unpack_from(data)
    end = _V2_HEAD.size + length
    if version_command >> 4 != 2 or version_command & 0xF > 1 or end > PREFACE_BYTES_MAX:
        raise BadPreface
    if len(data) < end:
        return None
    body = data[_V2_HEAD.size : end]
    known = _V2_ADDRESSES.get(family_protocol >> 4)
    if version_command & 0xF == 0 or known is None:  # LOCAL; or neither IPv4 nor IPv6
        return end, Origin("", tls=False)
    family, size = known
    extensions = body[2 * size + 4 :]
    if len(body) < 2 * size + 4:
        raise BadPreface
    return end, Origin(socket.inet_ntop(family, body[:size]), tls=_tells_tls(extensions))


def _tells_tls(extensions: bytes) -> bool:
    """Whether the TLVs say that the client's own connection was encrypted (§2.2.6)."""
    while len(extensions) >= 3:
        kind, length = struct.unpack_from("!BH", extensions)
        value, extensions = extensions[3 : 3 + length], extensions[3 + length :]
        if kind == _PP2_SSL and value:
            return bool(value[0] & _PP2_CLIENT_SSL)
    return False


def scheme_of(request: Request, scheme: bytes) -> bytes:
    """The scheme that the client used, by the word of the trusted proxy that brought the request."""
    for name, value in request.forwarded:
        if name == b"x-forwarded-proto" and value.lower() in (b"http", b"https"):
            scheme = value.lower()
    return scheme


def host_of(request: Request) -> bytes:
    """The host that the client used, by the word of the trusted proxy that brought the request."""
    host = request.host
    for name, value in request.forwarded:
        if name == b"x-forwarded-host" and _is_host(value):
            host = value
    return host


def forwarded_lines(request: Request, peer: bytes) -> bytes:
    """What we say of a client whose request a trusted proxy at `peer` brought, each line with its CRLF.

    The chain of X-Forwarded-For goes on with the proxy's own address. Scheme and host are what the
    proxy says the client used, where that can be one.
    """
    chain: list[bytes] = []
    for name, value in request.forwarded:
        if name == b"x-forwarded-for":
            chain += [hop.strip(b" \t") for hop in value.split(b",")]
    hops = [hop for hop in chain if hop][-HOPS_MAX:]
    return b"X-Forwarded-For: %b\r\nX-Forwarded-Host: %b\r\nX-Forwarded-Proto: %b\r\n" % (
        b", ".join((*hops, peer)),
        host_of(request),
        request.scheme,
    )


def _is_host(value: bytes) -> bool:
    try:
        http1.check_host(value)
    except http1.ProtocolError:
        return False
    return bool(value)
