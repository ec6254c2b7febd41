"""The Router's reading of heads is http1's, remembered or not."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.unit.http1.test_http1_heads import BAD_REQUESTS, HEADS, request

from agentcube import http1
from agentcube.router import heads
from agentcube.router.heads import Reader

NONE = heads.unread_request(b"")
WARM = Reader()  # remembers what earlier examples said

LINES = st.lists(
    st.sampled_from(
        [
            b"Content-Length: 3",
            b"Content-Length: 03",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Connection: close",
            b"Connection: keep-alive, x-a",
            b"X-A: 1",
            b"Upgrade: h9",
            b"Connection: upgrade",
            b"Expect: 100-continue",
            b"traceparent: 00-1-1-00",
            b"bad",
        ]
    ),
    max_size=5,
)


@given(
    st.one_of(
        HEADS,
        LINES.map(lambda lines: request(*lines, first=b"PUT /a HTTP/1.0")),
        LINES.map(lambda x: request(*x)),
    )
)
def test_the_reader_agrees_with_http1_on_every_head(head: bytes) -> None:
    end = 0
    try:
        end = http1.request_end(head)
        theirs: Any = http1.parse_request(head[:end]) if end > 0 else None
    except http1.ProtocolError as error:
        theirs = error.status
    if end <= 0:
        return
    before = heads.unread_request(b"")
    for reader in (Reader(), WARM, WARM):
        try:
            ours = reader.request(head[:end], before)
        except http1.ProtocolError:
            assert isinstance(theirs, int)  # two faults in one head may be found in another order
            continue
        assert isinstance(theirs, http1.RequestHead), theirs
        assert (ours.method, ours.target, ours.minor, ours.body) == (*theirs[:3], theirs.body)
        assert not ours.keep_alive or theirs.keep_alive
        kept = [http1.parse_field(line) for line in ours.kept.split(b"\r\n")[:-1]]
        before = ours
        assert set(kept) <= {*theirs.headers, (b"transfer-encoding", b"chunked")}


NAMES = st.sampled_from(
    [
        b"X-A: ",
        b"X-B:",
        b"Connection: x-",
        b"X-AgentCube-Other: ",
        b"X-Forwarded-For: ",
        b"X-Request-Id: ",
        b" X-A: ",
    ]
)
VALUES = st.sampled_from(
    [b"a", b"b", b"", b"a, close", b"a\xff"] + [b"a%cb" % byte for byte in (0, 10, 13, 127)]
)


@st.composite
def a_clients_heads(draw: st.DrawFn) -> list[bytes]:
    """Heads with the same names mostly, whose values change."""
    names = draw(st.lists(st.tuples(NAMES, st.booleans()), min_size=1, max_size=6))
    same = [name + draw(VALUES) for name, _ in names]
    heads = []
    for _ in range(draw(st.integers(3, 8))):
        lines = [
            draw(st.just(name) | st.just(name) | NAMES) + draw(VALUES) if changes else line
            for (name, changes), line in zip(names, same, strict=True)
        ]
        heads.append(request(*lines))
    return heads


SPECIAL: dict[bytes, list[bytes]] = {
    b"Host: x": [b"Host: y"],
    b"Content-Length: 3": [b"Content-Length: 50", b"Content-Length: abc"],
    b"Transfer-Encoding: chunked": [b"Transfer-Encoding: gzip", b"Transfer-Encoding: identity, chunked"],
    b"X-AgentCube-Session-Id: s": [b"X-AgentCube-Session-Id: t"],
    b"Authorization: Bearer a": [b"Authorization: Bearer b"],
    b"X-Request-Id: r": [b"X-Request-Id: q"],
    b"X-Forwarded-For: 1": [b"X-Forwarded-For: 2"],
    b"Connection: x-q": [b"Connection: close", b"Connection: x-n"],
    b"X-Q: 1": [b"X-Q: 2"],
    b"Upgrade: h9": [b"Upgrade: h8"],
    b"Accept: */*": [b"Accept: z"],
}


@st.composite
def heads_with_one_surprise(draw: st.DrawFn) -> list[bytes]:
    """Two lines change with every request; then another one does, once, and then earlier heads come again."""
    same: list[bytes | None] = list(draw(st.lists(st.sampled_from([*SPECIAL]), max_size=4, unique=True)))
    if b"Host: x" not in same:
        same.insert(0, b"Host: x")
    lines = list(same)
    for _ in range(2):
        lines.insert(draw(st.integers(0, len(lines))), None)  # one that changes

    def head(n: int, lines: list[bytes | None]) -> bytes:
        number = iter(range(2))
        return b"\r\n".join(
            (
                b"POST / HTTP/1.1",
                *(b"X-N%d: %d" % (next(number), n) if line is None else line for line in lines),
                b"\r\n",
            )
        )

    surprising = draw(st.sampled_from([line for line in same if line is not None]))
    said = draw(st.sampled_from(SPECIAL[surprising]))
    other = [said if line == surprising else line for line in lines]
    again = draw(st.sampled_from([2, 3]))
    return [
        *(head(n, lines) for n in range(3)),
        head(again, other),
        *(head(n, lines) for n in (1, 2, 1)),
    ]


@given(a_clients_heads() | heads_with_one_surprise())
@settings(max_examples=1000)
@example(
    [
        request(b"X-A: %d" % n, line, b"X-B: %d" % n)
        for line in (b"Content-Length: 3", b"Content-Length: 50", b"Content-Length: abc")
        for n in range(3)
    ]
)
@example(
    [
        request(b"X-A: %d" % n, line, b"X-B: %d" % n)
        for line in (b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity, chunked")
        for n in range(3)
    ]
)
def test_what_a_client_said_before_changes_no_meaning(said: list[bytes]) -> None:
    """Of lines that differ in their values alone, only the values are read."""
    reader, before = Reader(), NONE
    for head in said:
        outcomes: list[Any] = []
        for read, previous in ((Reader(), heads.unread_request(b"")), (reader, before)):
            try:
                found = read.request(head, previous)
            except http1.ProtocolError as error:
                outcomes.append(error.status)
            else:
                outcomes.append({name: getattr(found, name) for name in MEANING})
        assert outcomes[0] == outcomes[1]
        if not isinstance(outcomes[0], int):
            before = found


MEANING = [
    name
    for name in heads.Request.__slots__
    if name not in ("id", "scheme", "lines", "kinds", "kept_at", "changing")
]


def test_of_lines_that_always_change_only_those_are_looked_at() -> None:
    reader, before = Reader(), NONE
    for n in range(5):
        lines = (b"X-A: same", b"X-N: %d" % n, b"X-B: same", b"X-M: %d" % (10**n), b"X-C: same")
        before = reader.request(request(*lines), before)
        assert before.kept == b"".join(line + b"\r\n" for line in lines)
    changing = before.changing
    assert changing is not None
    assert changing.names == [b"X-N:", b"X-B:", b"X-M:"]
    for bad in (b"X-N: 1", b"X-N: 1\r\nX-B: \x01\r\nX-M: 1", b"X-N: 1\r\nHost: y\r\nX-M: 1"):
        block = request(b"X-A: same", bad, b"X-C: same").partition(b" HTTP/1.1")[2]
        assert not changing.take(before, block)


def test_a_line_that_is_spelled_as_we_pass_it_on_is_no_change() -> None:
    reader, before = Reader(), NONE
    for spelling in (b"transfer-encoding", b"Transfer-Encoding") * 3:
        before = reader.request(request(spelling + b": chunked"), before)
        assert (before.kept, before.body) == (b"Transfer-Encoding: chunked\r\n", http1.CHUNKED)


@pytest.mark.parametrize(("head", "status"), BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
def test_no_bad_head_is_read(head: bytes, status: int) -> None:
    reader = Reader()
    for _ in range(2):
        with pytest.raises(http1.ProtocolError) as caught:
            reader.request(head[: http1.request_end(head)], NONE)
        assert caught.value.status == status


def test_a_field_that_may_come_once_is_refused_twice() -> None:
    for line in (b"Authorization: Bearer a", b"X-AgentCube-Session-Id: a", b"Host: x"):
        with pytest.raises(http1.ProtocolError):
            Reader().request(request(line, line), NONE)


def test_a_head_that_says_the_same_again_is_only_read_up_to_its_first_line() -> None:
    reader = Reader()
    first = reader.request(request(b"A: b"), NONE)
    block = first.block
    second = reader.request(request(b"A: b", first=b"PUT /x HTTP/1.1"), first)
    assert second is first
    assert (second.method, second.target, second.kept) == (b"PUT", b"/x", b"A: b\r\n")
    assert reader.request(request(b"A: c"), second) is not second
    with pytest.raises(http1.ProtocolError):
        reader.request(b"GET * HTTP/1.1" + block, second)
    older = reader.request(request(b"A: b", first=b"GET / HTTP/1.0"), second)
    assert (older is second, older.keep_alive) == (False, False)
    long = reader.request(request(b"A: " + b"b" * 5000), NONE)
    assert reader.request(request(b"A: " + b"b" * 5000), long) is not long


@pytest.mark.parametrize("id", [b"a b", b"x" * 129, b"", b'"', b"\xff"])
def test_a_request_id_that_could_mislead_a_log_is_not_taken(id: bytes) -> None:
    assert Reader().request(request(b"X-Request-Id: " + id), NONE).given_id == b""
    assert Reader().request(request(b"X-Request-Id: ok-1"), NONE).given_id == b"ok-1"


def answer(head: bytes, **changes: Any) -> heads.Answer:
    asked = heads.unread_request(b"id")
    asked.method = b"GET"
    for name, value in changes.items():
        setattr(asked, name, value)
    return Reader().answer(head, asked, own_session=True)


def test_an_answer_of_http_1_0_is_passed_on_as_1_1_and_not_kept_alive() -> None:
    got = answer(b"HTTP/1.0 200 Fine\r\nA: b\r\n\r\n")
    assert got.head == b"HTTP/1.1 200 Fine\r\nA: b\r\n"
    assert (got.keep_alive, got.body) == (False, http1.UNTIL_CLOSE)


def test_a_chunked_answer_cannot_go_to_http_1_0() -> None:
    with pytest.raises(http1.ProtocolError):
        answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", minor=0)


@pytest.mark.parametrize("status", [b"204 No Content", b"103 Early Hints"])
def test_answers_that_cannot_have_a_body_are_not_framed(status: bytes) -> None:
    got = answer(b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\nA: b\r\n\r\n")
    assert (got.head, got.body) == (b"HTTP/1.1 " + status + b"\r\nA: b\r\n", 0)


def test_the_managers_own_session_header_passes() -> None:
    asked = heads.unread_request(b"id")
    asked.method = b"POST"
    head = b"HTTP/1.1 200 OK\r\nX-AgentCube-Session-Id: s\r\nContent-Length: 0\r\n\r\n"
    assert b"Session-Id" in Reader().answer(head, asked, own_session=False).head
    assert b"Session-Id" not in Reader().answer(head, asked, own_session=True).head


@given(st.binary(max_size=120))
def test_any_bytes_of_a_sandbox_are_an_answer_or_a_502(data: bytes) -> None:
    for head in (data + b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + data + b"\r\n\r\n"):
        try:
            end = http1.response_end(head)
            assert answer(head[:end]).status >= 100
        except http1.ProtocolError as error:
            assert error.status == 502  # noqa: PT017  (either is right)
