"""What is kept of processes' output: by offset, within bounds of its own and of all together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentcube.picod.process_output import FAIR_BYTES, Output, Store

CHUNKS = st.lists(st.integers(0, 90_000).map(lambda size: bytes([size % 251]) * size), max_size=12)


@given(CHUNKS, st.integers(1, 200_000), st.integers(0, 500_000), st.integers(1, 100_000))
def test_a_ring_keeps_the_last_bytes_by_offset(
    chunks: list[bytes], limit: int, offset: int, most: int
) -> None:
    ring = Output(Store(), limit, holds=False)
    for chunk in chunks:
        ring.add(chunk)
        assert not ring.full

    whole = b"".join(chunks)
    assert ring.end == len(whole)
    assert ring.start == max(0, len(whole) - limit)
    offset = min(max(offset, ring.start), ring.end)
    assert ring.read(offset, most) == whole[offset : offset + most]


@given(st.lists(st.tuples(st.binary(max_size=70_000), st.integers(0, 70_000)), max_size=12))
def test_a_holding_one_keeps_all_that_is_not_confirmed(steps: list[tuple[bytes, int]]) -> None:
    held, whole = Output(Store(), 100_000, holds=True), b""
    for data, confirmed in steps:
        held.add(data)
        whole += data
        held.drop(held.start + confirmed)
        assert held.read(held.start, 1 << 30) == whole[held.start :]
        assert held.full == (held.size >= 100_000)


def test_bytes_written_one_by_one_take_no_block_each() -> None:
    ring = Output(Store(), 1 << 20, holds=False)
    for _ in range(200_000):
        ring.add(b"x")
    assert len(ring._blocks) <= 4
    assert ring.read(199_990, 100) == b"x" * 10


def test_the_output_of_ended_programs_goes_first_the_oldest_before_others() -> None:
    store = Store(total=300_000)
    old, new, alive = (Output(store, 1 << 20, holds=False) for _ in range(3))
    for one in (old, new, alive):
        one.add(bytes(90_000))
    old.conclude()
    new.conclude()
    alive.add(bytes(50_000))
    assert (old.size, new.size, alive.size) == (0, 90_000, 140_000)
    assert old.start == old.end == 90_000


def test_then_the_largest_ring_gives_way() -> None:
    store = Store(total=400_000)
    large, small = Output(store, 1 << 20, holds=False), Output(store, 1 << 20, holds=False)
    large.add(bytes(350_000))
    small.add(bytes(90_000))
    assert small.size == 90_000
    assert large.size <= 310_000


def test_who_must_lose_nothing_is_full_instead_and_hears_when_there_is_room() -> None:
    store, told = Store(total=200_000), []
    first, second = (Output(store, 1 << 20, holds=True) for _ in range(2))
    second.room = lambda: told.append("room")
    first.add(bytes(190_000))
    second.add(bytes(FAIR_BYTES - 1))
    assert not second.full, "everybody may keep what is fair"
    second.add(bytes(100))
    assert second.full
    first.drop(100_000)
    assert told == ["room"]
    assert not second.full


def test_what_is_forgotten_keeps_nothing_and_gives_its_room_back() -> None:
    store = Store(total=100_000)
    gone, held = Output(store, 1 << 20, holds=True), Output(store, 1 << 20, holds=True)
    gone.add(bytes(90_000))
    gone.forget()
    gone.add(bytes(90_000))
    gone.conclude()
    assert (gone.size, gone.end) == (0, 180_000)
    held.add(bytes(90_000))
    assert not held.full
