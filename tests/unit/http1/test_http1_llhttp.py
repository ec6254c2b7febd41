"""No stream of requests is accepted that llhttp refuses or frames otherwise: generated and mutated ones."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.fuzz.http1_oracle import disagreement, ours, without_ignored_offers

TOKENS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"OPTIONS", b"PATCH"])
TARGETS = st.sampled_from([b"/"] * 4 + [b"/a/b?c=d", b"/%2F..;x", b"*", b"//x", b"/a#b", b"http://x/", b""])
FIELDS = st.sampled_from(
    [
        b"Content-Length: 3",
        b"Content-Length: 03",
        b"Content-Length: +3",
        b"Content-Length: 3, 3",
        b"Content-Length : 3",
        b"Content-Length:",
        b"Content-Length: 18446744073709551617",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: Chunked",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, identity",
        b"Transfer-Encoding: xchunked",
        b"Transfer-Encoding:\x0bchunked",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Connection: Upgrade",
        b"Upgrade: websocket",
        b"X: y",
        b"X:y\t",
        b"X: \x80\xff",
        b"X: a\x00b",
        b" folded: 1",
        b"\tfolded",
        b"no colon",
        b": no name",
        b"X\x01: y",
        b"Host: other",
        b"Expect: 100-continue",
        b"Trailer: x",
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 16 + [b"\n", b"\r\r\n"])
BODIES = st.sampled_from(
    [
        b"",
        b"abc",
        b"3\r\nabc\r\n0\r\n\r\n",
        b"3;x=y\r\nabc\r\n0\r\nX: y\r\n\r\n",
        b"3\nabc\r\n0\r\n\r\n",
        b"3 \r\nabc\r\n0\r\n\r\n",
        b"0x3\r\nabc\r\n0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"3;\n\r\nabc\r\n0\r\n\r\n",
        b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """A request, mostly framed as its body is: only what nearly works tells parsers apart."""
    version = draw(
        st.sampled_from([b"HTTP/1.1"] * 12 + [b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 "])
    )
    framing = draw(
        st.sampled_from(
            [
                (b"", b""),
                (b"Content-Length: 3", b"abc"),
                (b"Transfer-Encoding: chunked", b"3\r\nabc\r\n0\r\n\r\n"),
                (b"transfer-encoding:chunked", b"1;x=y\r\na\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n"),
            ]
        )
    )
    lines = [b" ".join((draw(TOKENS), draw(TARGETS), version)), b"Host: x"]
    lines += [framing[0]] if framing[0] else []
    lines += draw(
        st.lists(st.sampled_from([b"X: y", b"Accept: */*", b"X: \x80\xff", b"Cookie:a=b\t"]), max_size=2)
    )
    body = framing[1]
    if draw(st.integers(0, 3)) == 0:  # now and then anything
        lines += draw(st.lists(FIELDS, min_size=1, max_size=3))
        body = draw(st.one_of(st.just(body), BODIES))
    end = draw(ENDS)
    return b"".join(line + end for line in lines) + draw(ENDS) + body


MUTATIONS = st.lists(
    st.tuples(st.integers(0, 2_000), st.sampled_from(["drop", "put", "double"]), st.binary(max_size=2)),
    max_size=3,
)


def mutated(stream: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
    for place, what, new in changes:
        at = place % (len(stream) + 1)
        if what == "drop":
            stream = stream[:at] + stream[at + 1 :]
        elif what == "put":
            stream = stream[:at] + new + stream[at:]
        else:
            stream = stream[:at] + stream[at : at + 12] + stream[at:]
    return stream


@given(st.lists(requests(), min_size=1, max_size=3).map(b"".join), MUTATIONS)
@settings(max_examples=1500)
@example(
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", []
)
@example(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", [])
def test_what_is_accepted_llhttp_accepts_and_frames_alike(
    stream: bytes, changes: list[tuple[int, str, bytes]]
) -> None:
    assert disagreement(mutated(stream, changes)) == ""


@given(st.binary(max_size=400))
def test_any_bytes_are_read_as_llhttp_reads_them_or_not_at_all(stream: bytes) -> None:
    assert disagreement(stream) == ""


@pytest.mark.parametrize(
    "body", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
def test_pipelined_requests_are_seen_by_both(body: bytes) -> None:
    stream = (b"POST /a HTTP/1.1\r\nHost: x\r\n" + body) * 3
    assert len(ours(stream)) == 3  # so the comparison above compares something
    assert disagreement(stream) == ""


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 3\r\n\r\nabc",
        b"Content-Length: 3\r\n\r\n",  # not all of it yet
        b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
    ],
)
def test_bodies_beside_an_offered_upgrade_are_compared(rest: bytes) -> None:
    head = b"POST /a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUPGRADE: w\r\n"
    whole = rest.endswith((b"abc", b"0\r\n\r\n"))
    stream = head + rest + (head + rest if whole else b"")
    shown = without_ignored_offers(stream)
    assert [(one.body, one.whole) for one in ours(shown)] == (
        [(b"abc", True)] * 2 if whole else [(b"", False)]
    )
    assert disagreement(stream) == ""


def test_a_difference_would_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A parser that took the length where chunks rule would be caught."""
    from tests.fuzz import http1_oracle as oracle

    stream = b"POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    lax = [oracle.Seen(b"POST", b"/a", [(b"host", b"x"), (b"transfer-encoding", b"chunked")], b"", True)]
    monkeypatch.setattr(oracle, "ours", lambda _: lax)
    assert "body" in oracle.disagreement(stream)
