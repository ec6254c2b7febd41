"""What a PROXY header says, and whose word on a client counts."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.errors import Invalid
from agentcube.router import edge
from agentcube.router.edge import BadPreface, Origin, read_preface

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", 0x20 | command, family << 4 | 1, len(body)) + body


IPV4 = socket.inet_aton("203.0.113.7") + socket.inet_aton("10.0.0.1") + struct.pack("!HH", 4711, 443)
IPV6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") * 2 + struct.pack("!HH", 4711, 443)
TLS = struct.pack("!BHB", 0x20, 5, 1) + b"\0\0\0\0"

GOOD = [
    (b"PROXY TCP4 203.0.113.7 10.0.0.1 4711 443\r\n", Origin("203.0.113.7", tls=False)),
    (b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 443\r\n", Origin("2001:db8::7", tls=False)),
    (b"PROXY UNKNOWN\r\n", Origin("", tls=False)),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Origin("", tls=False)),
    (v2(1, 1, IPV4), Origin("203.0.113.7", tls=False)),
    (v2(1, 2, IPV6), Origin("2001:db8::7", tls=False)),
    (v2(1, 1, IPV4 + b"\x04\0\x02hi" + TLS), Origin("203.0.113.7", tls=True)),
    (v2(1, 1, IPV4 + b"\x20\0\x05\0\0\0\0\0"), Origin("203.0.113.7", tls=False)),
    (v2(1, 3, b"\0" * 216), Origin("", tls=False)),
    (v2(0, 0, b""), Origin("", tls=False)),
]


@pytest.mark.parametrize(("header", "origin"), GOOD)
def test_a_header_is_read_whole_and_not_before(header: bytes, origin: Origin) -> None:
    assert read_preface(header) == (len(header), origin)
    assert read_preface(header + b"GET / HTTP/1.1\r\n") == (len(header), origin)
    for length in range(1, len(header)):
        assert read_preface(header[:length]) is None


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"POST / HTTP/1.1\r\n",
        b"PROXY TCP4 203.0.113.7\r\n",
        b"PROXY TCP4 999.0.0.1 10.0.0.1 1 2\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP9 1.1.1.1 1.1.1.1 1 2\r\n",
        b"PROXY TCP4 1.1.1.1 1.1.1.1 1 2\n",
        b"PROXY UNKNOWN " + b"x" * 200,
        SIGNATURE + b"\x11\x11\0\x0c" + IPV4,
        SIGNATURE + b"\x22\x11\0\x0c" + IPV4,
        SIGNATURE + b"\x21\x11\xff\xff" + IPV4,
        v2(1, 1, IPV4[:6]),
        b"\r\n\r\nGET",
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    def read_as_it_comes() -> None:
        for length in range(1, len(data) + 200):
            assert read_preface((data + b"." * 200)[:length]) is None

    with pytest.raises(BadPreface):
        read_as_it_comes()


@given(st.binary(max_size=300), st.sampled_from([b"", b"PROXY ", SIGNATURE, SIGNATURE + b"\x21\x11"]))
def test_any_bytes_are_a_header_or_none(data: bytes, start: bytes) -> None:
    try:
        found = read_preface(start + data or b"P")
    except BadPreface:
        return
    assert found is None or 0 < found[0] <= edge.PREFACE_BYTES_MAX


def test_networks_hold_addresses_however_they_are_written() -> None:
    known = edge.networks(["10.0.0.0/8", "2001:db8::1"])
    assert edge.is_within("10.1.2.3", known)
    assert edge.is_within("::ffff:10.1.2.3", known)
    assert edge.is_within("2001:db8::1", known)
    assert not edge.is_within("11.1.2.3", known)
    assert not edge.is_within("unknown", known)
    assert not edge.is_within("10.1.2.3", ())


@pytest.mark.parametrize("name", ["10.0.0.0/99", "proxy.example", "10.0.0.1/8", ""])
def test_what_is_no_network_is_refused(name: str) -> None:
    with pytest.raises(Invalid, match="trusted proxy"):
        edge.networks([name])
