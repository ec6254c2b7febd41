"""User id ranges: of their own, and nobody else's."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.drivers.local.uidrange import FIRST, LAST, RANGE_SIZE, UidRanges
from agentcube.errors import CapacityExhausted, Conflict


def spans_meet(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a[0] < b[0] + b[1] and b[0] < a[0] + a[1]


def machine(root: Path, *, uid_map: str = "0 0 4294967295", subuid: str = "", subgid: str = "") -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "etc").mkdir()
    for name in ("uid_map", "gid_map"):
        (root / "proc/self" / name).write_text(f"         {uid_map}\n")
    (root / "etc/subuid").write_text(subuid)
    (root / "etc/subgid").write_text(subgid)
    return root


def test_ranges_are_distinct_and_start_above_people_and_services(tmp_path: Path) -> None:
    ranges = UidRanges.detect(machine(tmp_path))
    bases = [ranges.allocate() for _ in range(100)]
    assert len(set(bases)) == 100
    assert min(bases) == FIRST
    assert all((base - FIRST) % RANGE_SIZE == 0 for base in bases)


@pytest.mark.parametrize("file", ["subuid", "subgid"])
def test_subordinate_ids_of_this_machine_are_left_alone(tmp_path: Path, file: str) -> None:
    taken = f"# comment\nann:{FIRST + RANGE_SIZE + 5}:10\nnonsense\nbob:x:y\n"
    ranges = UidRanges.detect(machine(tmp_path, **{file: taken}))
    bases = {ranges.allocate() for _ in range(3)}
    assert bases == {FIRST, FIRST + 2 * RANGE_SIZE, FIRST + 3 * RANGE_SIZE}


def test_ids_that_do_not_exist_in_our_own_namespace_are_not_handed_out(tmp_path: Path) -> None:
    ranges = UidRanges.detect(machine(tmp_path, uid_map=f"0 100000 {FIRST + 2 * RANGE_SIZE + 1}"))
    assert [ranges.allocate(), ranges.allocate()] == [FIRST, FIRST + RANGE_SIZE]
    with pytest.raises(CapacityExhausted, match="65536 user ids"):
        ranges.allocate()


def test_a_container_with_few_ids_has_none_to_give(tmp_path: Path) -> None:
    with pytest.raises(CapacityExhausted):
        UidRanges.detect(machine(tmp_path, uid_map="0 100000 65536")).allocate()


def test_a_reserved_range_is_not_allocated_and_cannot_be_reserved_twice() -> None:
    ranges = UidRanges()
    ranges.reserve(FIRST)
    assert ranges.allocate() == FIRST + RANGE_SIZE
    with pytest.raises(Conflict, match=str(FIRST)):
        ranges.reserve(FIRST)


def test_a_released_range_can_be_reserved_and_allocated_again() -> None:
    ranges = UidRanges(allowed=[(FIRST, RANGE_SIZE)])
    base = ranges.allocate()
    ranges.release(base)
    ranges.release(base)
    assert ranges.in_use() == frozenset()
    ranges.reserve(base)
    with pytest.raises(CapacityExhausted):
        ranges.allocate()
    ranges.release(base)
    assert ranges.allocate() == base


spans = st.tuples(st.integers(0, LAST), st.integers(1, 1 << 24))


@given(taken=st.lists(spans, max_size=4), steps=st.lists(st.booleans(), max_size=60))
def test_no_two_live_ranges_meet_each_other_or_anything_taken(
    taken: list[tuple[int, int]], steps: list[bool]
) -> None:
    ranges = UidRanges(taken=taken)
    live: list[int] = []
    for allocate in steps:
        if allocate or not live:
            try:
                live.append(ranges.allocate())
            except CapacityExhausted:
                continue
        else:
            ranges.release(live.pop(0))
        assert ranges.in_use() == set(live)
        assert len(set(live)) == len(live)
        for base in live:
            assert base >= FIRST
            assert base + RANGE_SIZE <= LAST + 1
            assert not any(spans_meet((base, RANGE_SIZE), span) for span in taken)
