"""Where bodies end, however their bytes are cut, and against h11 as a reference."""

import itertools

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agentcube import http1


def feed_all(body: http1.Body, pieces: list[bytes]) -> tuple[bytes, bytes]:
    """(payload, bytes behind the message) after feeding `pieces` in order."""
    payload: list[bytes] = []
    rest = b""
    for piece in pieces:
        taken = 0 if body.done else body.feed(piece, payload)
        rest += piece[taken:]
    return b"".join(payload), rest


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def chunked(parts: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(http1.chunk(part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


CUTS = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.lists(st.binary(max_size=40), max_size=6), st.binary(max_size=20), CUTS)
def test_a_chunked_body_ends_where_it_ends_however_it_is_cut(
    parts: list[bytes], after: bytes, places: list[int]
) -> None:
    wire = chunked(parts, b"X-Sum: 1\r\n")
    body = http1.ChunkedBody()
    payload, rest = feed_all(body, cut(wire + after, places))
    assert body.done
    assert payload == b"".join(parts)
    assert rest == after
    assert body.trailers == [(b"x-sum", b"1")]


@given(st.lists(st.binary(max_size=4), max_size=9), st.binary(max_size=20), CUTS, st.integers(1, 3))
def test_a_chunked_body_can_be_read_a_few_lines_at_a_time(
    parts: list[bytes], after: bytes, places: list[int], lines_max: int
) -> None:
    body = http1.ChunkedBody(lines_max=lines_max)
    payload: list[bytes] = []
    rest = b""
    for piece in cut(chunked(parts, b"X-Sum: 1\r\n") + after, places):
        while piece and not body.done:
            before = len(payload)
            taken = body.feed(piece, payload)
            assert taken > 0
            assert (
                len(payload) - before <= lines_max + 1
            )  # the end of one chunk, and the beginning of the last
            piece = piece[taken:]
        rest += piece
    assert (b"".join(payload), rest, body.done) == (b"".join(parts), after, True)


@given(st.binary(max_size=60), CUTS, st.binary(max_size=5))
def test_a_body_of_known_length_takes_just_that(data: bytes, places: list[int], after: bytes) -> None:
    body = http1.track(len(data))
    assert feed_all(body, cut(data + after, places)) == (data, after)
    assert body.done


def test_a_body_until_close_takes_everything() -> None:
    body = http1.track(http1.UNTIL_CLOSE)
    assert feed_all(body, [b"a", b"", b"b"]) == (b"ab", b"")
    assert not body.done


BAD_CHUNKS = {
    "no size": b"\r\nabc",
    "not hexadecimal": b"g\r\n",
    "0x": b"0x3\r\nabc\r\n",
    "sign": b"+3\r\nabc\r\n",
    "space before size": b" 3\r\nabc\r\n",
    "space after size": b"3 \r\nabc\r\n",
    "underscore": b"1_0\r\n",
    "too many digits": b"0" * 16 + b"\r\n",
    "bare LF after size": b"3\nabc\r\n",
    "bare CR in extension": b"3;a\rb\r\nabc\r\n",
    "NUL in extension": b"3;\x00\r\nabc\r\n",
    "extension that is no token": b"3;a:b\r\nabc\r\n",
    "extension without a name": b"3;\r\nabc\r\n",
    "unfinished quote in extension": b'3;a="b\r\nabc\r\n',
    "space in extension": b"3; a=b\r\nabc\r\n",
    "extension too long": b"3;" + b"a" * 2000,
    "data longer than its size": b"3\r\nabcd\r\n",
    "no CRLF after data": b"3\r\nabc3\r\nabc\r\n",
    "bare LF after data": b"3\r\nabc\n0\r\n\r\n",
    "CR without LF after data": b"3\r\nabc\rx",
    "bare LF in trailer": b"0\r\na: b\n\r\n",
    "malformed trailer": b"0\r\na : b\r\n\r\n",
    "folded trailer": b"0\r\na: b\r\n c\r\n\r\n",
    "forbidden trailer": b"0\r\nContent-Length: 3\r\n\r\n",
    "trailers too large": b"0\r\na: " + b"b" * 20_000,
    "too many trailers": b"0\r\n" + b"a: b\r\n" * 101,
}


@pytest.mark.parametrize("wire", BAD_CHUNKS.values(), ids=BAD_CHUNKS.keys())
@pytest.mark.parametrize("step", [1, 100_000])
def test_bad_chunks_are_refused_as_soon_as_they_are_seen(wire: bytes, step: int) -> None:
    body = http1.ChunkedBody(status=502)
    pieces = [wire[start : start + step] for start in range(0, len(wire), step)]
    with pytest.raises(http1.ProtocolError) as caught:
        feed_all(body, pieces)
    assert caught.value.status == 502


PIECES = st.sampled_from(
    [
        b"0",
        b"3",
        b"a",
        b"A",
        b";",
        b";x=y",
        b"\r\n",
        b"\n",
        b"\r",
        b"abc",
        b" ",
        b"x: y",
        b"\x00",
        b"ffff",
        b"\t",
    ]
)


@given(st.lists(PIECES, max_size=16).map(b"".join), CUTS)
@example(b"3\r\nabc\r\n0\r\n\r\nGET", [])
def test_no_chunked_body_is_accepted_that_h11_refuses_or_reads_otherwise(
    wire: bytes, places: list[int]
) -> None:
    body = http1.ChunkedBody()
    try:
        payload, rest = feed_all(body, cut(wire, places))
    except http1.ProtocolError:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + wire)
    theirs, ended = b"", False
    connection.next_event()
    while not ended:
        event = connection.next_event()  # raises when h11 refuses
        if event is h11.NEED_DATA:
            break
        ended = isinstance(event, h11.EndOfMessage)
        if isinstance(event, h11.Data):
            theirs += bytes(event.data)
    assert theirs == payload
    assert ended == body.done
    if ended:
        assert connection.trailing_data[0] == rest
