"""multipart/form-data: the same parts, however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.picod.multipart import MultipartError, MultipartParser, PartEnd, PartHead, boundary_of

BOUNDARY = b"xYz"


def form(*parts: tuple[str, bytes]) -> bytes:
    body = b""
    for name, content in parts:
        body += b'--xYz\r\nContent-Disposition: form-data; name="%s"; filename="f"\r\n' % name.encode()
        body += b"Content-Type: text/plain\r\n\r\n" + content + b"\r\n"
    return body + b"--xYz--\r\n"


def parse(pieces: list[bytes]) -> list[tuple[str, bytes]]:
    parser = MultipartParser(BOUNDARY)
    found: list[tuple[str, bytes]] = []
    name, content, inside = "", b"", False
    for piece in pieces:
        for event in parser.feed(piece):
            if isinstance(event, PartHead):
                name, content, inside = event.name, b"", True
            elif isinstance(event, PartEnd):
                found.append((name, content))
                inside = False
            else:
                assert inside
                content += event
    assert parser.complete
    return found


# Contents that look like boundaries are the ones that parsers get wrong.
CONTENT = st.binary(max_size=60) | st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b"--", b"--xY", b"\r\n--xY", b"\r\n--", b"a", b"--xYz", b"z"]), max_size=12
).map(b"".join).filter(lambda content: b"\r\n--xYz" not in content)  # fmt: skip


@given(st.lists(st.tuples(st.sampled_from(["path", "file", "mode"]), CONTENT), max_size=5), st.data())
def test_parts_come_out_as_they_went_in(parts: list[tuple[str, bytes]], data: st.DataObject) -> None:
    whole = form(*parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]

    wanted = [(name, content) for name, content in parts if b"\r\n--xYz" not in b"\r\n" + content or True]
    if any(content.startswith(b"--xYz") for _, content in parts):
        return  # directly behind a part's head that is a boundary, as any parser reads it
    assert parse(pieces) == wanted


def test_every_byte_alone_is_enough() -> None:
    whole = form(("path", b"a"), ("file", b"\r\n--xY\r\n"), ("mode", b""))
    assert parse([bytes([byte]) for byte in whole]) == [
        ("path", b"a"),
        ("file", b"\r\n--xY\r\n"),
        ("mode", b""),
    ]


def test_a_preamble_and_an_epilogue_are_ignored() -> None:
    assert parse([b"preamble\r\n" + form(("a", b"1")) + b"epilogue"]) == [("a", b"1")]


@pytest.mark.parametrize(
    "body",
    [
        b"x" * 10_000,
        b"--xYzwrong",
        b"--xYz\r\n\r\n\r\nno name\r\n--xYz--",
        b"--xYz\r\nContent-Disposition: form-data\r\n\r\n",
        b"--xYz\r\n" + b"A: b\r\n" * 5000,
        form(*[("a", b"")] * 20),
    ],
)
def test_what_is_no_form_is_refused(body: bytes) -> None:
    parser = MultipartParser(BOUNDARY)
    with pytest.raises(MultipartError):
        list(parser.feed(body))


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=x; boundary="a b"', b"a b"),
        ("application/json", None),
        ("", None),
    ],
)
def test_the_boundary_is_found(content_type: str, boundary: bytes | None) -> None:
    assert boundary_of(content_type) == boundary


@pytest.mark.parametrize(
    "rest", ["", "; boundary=", '; boundary=""', "; boundary=" + "a" * 71, "; boundary=a\x00"]
)
def test_a_boundary_that_is_none_is_refused(rest: str) -> None:
    with pytest.raises(MultipartError):
        boundary_of("multipart/form-data" + rest)
