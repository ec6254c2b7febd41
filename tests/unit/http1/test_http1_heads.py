"""What a head may be, by table, and against h11 as a reference."""

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentcube import http1

GOOD = b"GET /a?b=%2F HTTP/1.1\r\nHost: x\r\n"


def request(*lines: bytes, first: bytes = b"POST / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: x", *lines, b"", b""))


def status_of(head: bytes) -> int:
    """The status with which `head` is refused; 0 when it is accepted."""
    try:
        end = http1.request_end(head)
        assert end == len(head), "the helper takes one whole head"
        http1.parse_request(head)
    except http1.ProtocolError as error:
        return error.status
    return 0


BAD_REQUESTS = {
    "content-length and transfer-encoding": (
        request(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
        400,
    ),
    "two content-lengths": (request(b"Content-Length: 3", b"Content-Length: 4"), 400),
    "two equal content-lengths": (request(b"Content-Length: 3", b"Content-Length: 3"), 400),
    "content-length list": (request(b"Content-Length: 3, 3"), 400),
    "signed content-length": (request(b"Content-Length: +3"), 400),
    "negative content-length": (request(b"Content-Length: -3"), 400),
    "hexadecimal content-length": (request(b"Content-Length: 0x3"), 400),
    "underscored content-length": (request(b"Content-Length: 1_0"), 400),
    "empty content-length": (request(b"Content-Length:"), 400),
    "huge content-length": (request(b"Content-Length: " + b"9" * 19), 400),
    "folded header": (request(b"A: b", b" c"), 400),
    "folded first header": (b"GET / HTTP/1.1\r\n Host: x\r\nHost: x\r\n\r\n", 400),
    "bare LF in headers": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "bare CR in headers": (request(b"A: b\rC: d"), 400),
    "bare CR before CRLF": (request(b"A: b\r"), 400),
    "space before colon": (request(b"Content-Length : 3"), 400),
    "tab before colon": (request(b"Content-Length\t: 3"), 400),
    "no colon": (request(b"nonsense"), 400),
    "empty name": (request(b": x"), 400),
    "NUL in value": (request(b"A: b\x00c"), 400),
    "control byte in value": (request(b"A: b\x01c"), 400),
    "DEL in value": (request(b"A: b\x7fc"), 400),
    "control byte in name": (request(b"A\x01: b"), 400),
    "high byte in name": (request(b"\xc3\xa9: b"), 400),
    "unknown transfer coding": (request(b"Transfer-Encoding: gzip"), 501),
    "identity transfer coding": (request(b"Transfer-Encoding: identity"), 501),
    "chunked not last": (request(b"Transfer-Encoding: chunked, gzip"), 501),
    "gzip and chunked": (request(b"Transfer-Encoding: gzip, chunked"), 501),
    "chunked twice": (request(b"Transfer-Encoding: chunked, chunked"), 400),
    "two transfer-encodings": (request(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    "obfuscated chunked": (request(b'Transfer-Encoding: "chunked"'), 501),
    "vertical tab chunked": (request(b"Transfer-Encoding: \x0bchunked"), 400),
    "transfer-encoding in HTTP/1.0": (
        request(b"Transfer-Encoding: chunked", first=b"POST / HTTP/1.0"),
        400,
    ),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (request(b"Host: y"), 400),
    "host with a path": (b"GET / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
    "host with user info": (b"GET / HTTP/1.1\r\nHost: a@x\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\n", 505),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", 505),
    "lower case version": (b"GET / http/1.1\r\nHost: x\r\n\r\n", 400),
    "absolute form": (request(first=b"GET http://x/ HTTP/1.1"), 400),
    "authority form": (request(first=b"GET x:80 HTTP/1.1"), 400),
    "CONNECT": (request(first=b"CONNECT x:80 HTTP/1.1"), 501),
    "asterisk form of GET": (request(first=b"GET * HTTP/1.1"), 400),
    "two spaces": (request(first=b"GET  / HTTP/1.1"), 400),
    "tab for space": (request(first=b"GET\t/ HTTP/1.1"), 400),
    "space in target": (request(first=b"GET /a b HTTP/1.1"), 400),
    "high byte in target": (request(first=b"GET /\xc3\xa9 HTTP/1.1"), 400),
    "fragment": (request(first=b"GET /#a HTTP/1.1"), 400),
    "method with a slash": (request(first=b"G/T / HTTP/1.1"), 400),
    "leading empty line": (b"\r\n" + request(), 400),
    "too many headers": (request(*[b"a: b"] * 100), 431),
    "head too large": (request(b"a: " + b"b" * 65536), 431),
}


@pytest.mark.parametrize(("head", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_a_bad_request_head_is_refused_with_its_status(head: bytes, status: int) -> None:
    assert status_of(head) == status


@pytest.mark.parametrize(
    "start",
    [b"GET / HTTP/1.1\r\nHost: x\n", b"GET / HTTP/1.1\n", b"GET /\r\n", b"\x16\x03\x01", b"\n", b"GET / \rx"],
)
def test_an_incomplete_head_that_cannot_become_good_is_refused_at_once(start: bytes) -> None:
    with pytest.raises(http1.ProtocolError):
        http1.request_end(start)


def test_the_end_of_a_head_that_comes_byte_by_byte_is_found() -> None:
    head = request(b"A: b")
    for size in range(len(head)):
        assert http1.request_end(head[:size], max(0, size - 1)) == -1
    assert http1.request_end(head + b"body", len(head) - 1) == len(head)


def test_an_endless_head_is_refused_when_it_passes_the_limit() -> None:
    with pytest.raises(http1.ProtocolError) as caught:
        http1.request_end(b"GET / HTTP/1.1\r\nA: " + b"b" * http1.HEAD_BYTES_MAX)
    assert caught.value.status == 431


def test_a_request_head_keeps_order_repeats_and_raw_target() -> None:
    head = http1.parse_request(GOOD + b"Cookie: a\r\nX:\r\nCookie:  b c \t\r\n\r\n")
    assert head.target == b"/a?b=%2F"
    assert head.headers == [(b"host", b"x"), (b"cookie", b"a"), (b"x", b""), (b"cookie", b"b c")]
    assert head.get(b"cookie") == b"a"
    assert head.get(b"absent") is None
    assert (head.body, head.keep_alive, head.upgrade) == (0, True, None)


@pytest.mark.parametrize(
    ("first", "line", "keeps"),
    [
        (b"GET / HTTP/1.1", b"Connection: Close", False),
        (b"GET / HTTP/1.1", b"Connection: x, close", False),
        (b"GET / HTTP/1.0", b"Connection: keep-alive", True),
        (b"GET / HTTP/1.0", b"A: b", False),
    ],
)
def test_connection_options_decide_about_keep_alive(first: bytes, line: bytes, keeps: bool) -> None:
    assert http1.parse_request(request(line, first=first)).keep_alive is keeps


def test_expectation_and_upgrade_are_read() -> None:
    head = http1.parse_request(request(b"Expect: 100-Continue", b"Connection: Upgrade", b"Upgrade: h9"))
    assert head.expect_continue
    assert head.upgrade == b"h9"
    assert http1.parse_request(request(b"Upgrade: h9")).upgrade is None


BAD_RESPONSES = {
    "bad version": b"HTTP/2 200 OK\r\n\r\n",
    "bad status": b"HTTP/1.1 20 OK\r\n\r\n",
    "control byte in reason": b"HTTP/1.1 200 O\x01K\r\n\r\n",
    "both framings": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "chunked in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "fold": b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
    "bare LF": b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
    "too many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 101 + b"\r\n",
}


@pytest.mark.parametrize("head", BAD_RESPONSES.values(), ids=BAD_RESPONSES.keys())
def test_a_bad_response_head_is_a_bad_gateway(head: bytes) -> None:
    def read() -> None:
        http1.response_end(head)
        http1.parse_response(head, b"GET")

    with pytest.raises(http1.ProtocolError) as caught:
        read()
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("method", "head", "body"),
    [
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 5),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", 0),
        (b"GET", b"HTTP/1.1 304 \r\nContent-Length: 5\r\n\r\n", 0),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", 0),
        (b"GET", b"HTTP/1.1 103 Early Hints\r\n\r\n", 0),
        (b"GET", b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked\r\n\r\n", http1.CHUNKED),
        (b"GET", b"HTTP/1.0 200 OK\r\n\r\n", http1.UNTIL_CLOSE),
    ],
)
def test_the_length_of_a_response_body(method: bytes, head: bytes, body: int) -> None:
    assert http1.parse_response(head, method).body == body


PIECES = st.sampled_from(
    [
        b"\r\n",
        b"\n",
        b"\r",
        b" ",
        b"\t",
        b":",
        b": ",
        b"a",
        b"Content-Length",
        b"Transfer-Encoding",
        b"chunked",
        b"Host: x",
        b"0",
        b"3",
        b",",
        b"\x00",
        b"\x0b",
        b"\x7f",
        b"\x85",
        b"\xa0",
        b"+",
        b"HTTP/1.1",
        b"GET",
        b"/",
    ]
)
HEADS = st.one_of(
    st.lists(PIECES, max_size=12).map(lambda p: request(b"".join(p))),
    st.lists(PIECES, max_size=8).map(lambda p: b"".join(p) + b"\r\nHost: x\r\n\r\n"),
    st.lists(
        st.sampled_from(
            [
                b"Content-Length: 3",
                b"Content-Length: 4",
                b"Transfer-Encoding: chunked",
                b"transfer-encoding:chunked",
                b"A: b",
                b"Connection: close",
                b" fold",
            ]
        ),
        max_size=4,
    ).map(lambda lines: request(*lines)),
    st.binary(max_size=60).map(lambda b: request(b"A: " + b)),
)


@given(HEADS)
@example(request(b"Content-Length: 3"))
@example(request(b"Transfer-Encoding: chunked"))
def test_no_head_is_accepted_that_h11_refuses_or_frames_otherwise(head: bytes) -> None:
    try:
        end = http1.request_end(head)
        if end < 0:
            return
        ours = http1.parse_request(head[:end])
    except http1.ProtocolError:
        return
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 17)
    connection.receive_data(head[:end])
    theirs = connection.next_event()  # raises when h11 refuses
    assert isinstance(theirs, h11.Request)
    assert (ours.method, ours.target) == (theirs.method, theirs.target)
    assert ours.headers == [(bytes(k), bytes(v)) for k, v in theirs.headers]
    chunked = any(k == b"transfer-encoding" for k, _ in theirs.headers)
    length = next((int(v) for k, v in theirs.headers if k == b"content-length"), 0)
    assert ours.body == (http1.CHUNKED if chunked else length)


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_give_a_head_or_a_protocol_error(data: bytes, answered: bool) -> None:
    end_of, parse = (
        (http1.response_end, lambda head: http1.parse_response(head, b"GET"))
        if answered
        else (http1.request_end, http1.parse_request)
    )
    refused = set()
    for text in (
        data,
        data + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n",
        GOOD + data + b"\r\n\r\n",
    ):
        try:
            end = end_of(text)
            if end >= 0:
                parse(text[:end])
        except http1.ProtocolError as error:
            refused.add(error.status)
    assert refused <= ({502} if answered else {400, 431, 501, 505})


def test_written_heads_are_read_back() -> None:
    headers = [(b"host", b"x"), (b"content-length", b"2"), (b"x", b"")]
    written = http1.request_head(b"PUT", b"/a", headers)
    assert http1.parse_request(written).headers == headers
    answer = http1.response(404, [(b"content-type", b"text/plain")], b"no")
    end = http1.response_end(answer)
    read = http1.parse_response(answer[:end], b"GET")
    assert (read.status, read.reason, read.body, answer[end:]) == (404, b"Not Found", 2, b"no")


@pytest.mark.parametrize("value", [b"a\r\nb: c", b"a\nb", b"\x00"])
def test_a_value_cannot_split_a_written_head(value: bytes) -> None:
    with pytest.raises(ValueError):
        http1.response_head(200, [(b"a", value)])
    with pytest.raises(ValueError):
        http1.response_head(200, [(value, b"a")])
    with pytest.raises(ValueError):
        http1.request_head(b"GET", b"/" + value, [])
