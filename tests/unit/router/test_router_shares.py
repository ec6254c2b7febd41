"""The shares of subjects: token buckets and counts, by times that the test gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.errors import LimitExceeded
from agentcube.router.limits import Limits
from agentcube.router.settings import RouterSettings


def test_a_bucket_gives_its_burst_at_once_and_then_the_rate() -> None:
    limits = Limits(RouterSettings(requests_per_s=2, request_burst=3))
    for _ in range(3):
        limits.leave(limits.enter("alice", 100.0))
    for now in (100.0, 100.4):
        with pytest.raises(LimitExceeded, match="too fast"):
            limits.enter("alice", now)
    limits.leave(limits.enter("alice", 100.6))
    limits.leave(limits.enter("bob", 100.6))  # who has a bucket of his own
    with pytest.raises(LimitExceeded):
        limits.enter("alice", 100.7)


def test_refused_requests_cost_nothing_and_time_that_goes_back_gives_nothing() -> None:
    limits = Limits(RouterSettings(requests_per_s=1, request_burst=1))
    limits.leave(limits.enter("alice", 10.0))
    for _ in range(50):
        with pytest.raises(LimitExceeded):
            limits.enter("alice", 10.5)
    limits.leave(limits.enter("alice", 11.0))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3)), max_size=60))
def test_no_subject_ever_gets_more_than_burst_and_rate_allow(calls: list[tuple[str, float]]) -> None:
    limits = Limits(RouterSettings(requests_per_s=2, request_burst=4))
    now = 0.0
    served: dict[str, list[float]] = {}
    for name, pause in calls:
        now += pause
        try:
            limits.leave(limits.enter(name, now))
        except LimitExceeded:
            continue
        served.setdefault(name, []).append(now)
    for times in served.values():
        for i, start in enumerate(times):
            for j in range(i, len(times)):
                assert j - i + 1 <= 4 + 2 * (times[j] - start) + 1e-6


def test_what_nobody_needs_is_forgotten() -> None:
    free = Limits(RouterSettings())
    share = free.enter("alice", 1.0)
    assert len(free) == 1
    free.leave(share)
    assert len(free) == 0

    limited = Limits(RouterSettings(requests_per_s=1, request_burst=2))
    limited.leave(limited.enter("alice", 1.0))
    limited.sweep(1.5)
    assert len(limited) == 1
    limited.sweep(2.0)
    assert len(limited) == 0
