"""Bounded buffers: what is kept of streams that are too long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentcube.picod.output import Head, Ring

CHUNKS = st.lists(st.binary(max_size=30), max_size=30)


@given(CHUNKS, st.integers(1, 100))
def test_a_head_keeps_the_first_bytes(chunks: list[bytes], limit: int) -> None:
    head = Head(limit)
    for chunk in chunks:
        head.add(chunk)

    whole = b"".join(chunks)
    assert head.content() == whole[:limit]
    assert head.truncated == (len(whole) > limit)


@given(CHUNKS, st.integers(1, 100))
def test_a_ring_keeps_the_last_bytes(chunks: list[bytes], limit: int) -> None:
    ring = Ring(limit)
    for order, chunk in enumerate(chunks):
        ring.add(order, chunk)

    assert b"".join(data for _, data in ring.chunks) == b"".join(chunks)[-limit:]
    assert [order for order, _ in ring.chunks] == sorted(order for order, _ in ring.chunks)


def test_a_ring_of_tiny_chunks_is_bounded_too() -> None:
    ring = Ring(1 << 20)
    for order in range(20_000):
        ring.add(order, b"x")

    assert len(ring.chunks) == Ring.CHUNKS_MAX


def test_a_line_of_our_own_starts_on_a_line_of_its_own() -> None:
    head = Head(3)
    head.add(b"abcd")
    head.add_line("note")
    assert head.content() == b"abc\nnote\n"
    empty = Head(3)
    empty.add_line("note")
    assert empty.content() == b"note\n"
