"""Go-style durations: the accepted spellings, the refused ones, and the way back."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("+0", 0),
        ("0s", 0),
        ("30s", 30),
        ("1h30m", 5400),
        ("1h30m10.5s", 5410.5),
        ("300ms", 0.3),
        ("1.5s", 1.5),
        (".5s", 0.5),
        ("1.s", 1),
        ("+2m", 120),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("1ns", 1e-9),
        ("24h", 86400),
        ("1s1s", 2),  # Go adds terms up in any order
        ("0.100000000000000000000s", 0.1),
    ],
)
def test_reads_what_go_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


REFUSED = [
    "30",
    "s",
    ".",
    ".s",
    "1.2.3s",
    "-1s",
    "+-1s",
    "+",
    "-0",
    "1 s",
    " 1s",
    "1s ",
    "1S",
    "1d",
    "1e3s",
    "١s",
    "3.",
    "1h-30m",
    "inf",
    "nan",
    "1s\n",
    " ",
]


@pytest.mark.parametrize("text", ["", *REFUSED, "9" * 30 + "h", "1" * 100 + "s", "1ns" * 30])
def test_refuses_the_rest_and_quotes_it(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)


@pytest.mark.parametrize("value", [None, 5, 1.5, b"1s", [], {}])
def test_refuses_what_is_no_text(value: object) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (90, "1m30s"),
        (900, "15m"),
        (5400, "1h30m"),
        (28800, "8h"),
        (1.5, "1.5s"),
        (0.3, "300ms"),
        (1e-9, "1ns"),
        (1.5e-6, "1.5us"),
        (3600.25, "1h0.25s"),
    ],
)
def test_writes_the_shortest_form(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan, 1e12])
def test_writes_no_impossible_duration(seconds: float) -> None:
    with pytest.raises(ValueError, match="duration"):
        format_duration(seconds)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_written_duration_reads_back(ns: int) -> None:
    assert parse_duration(format_duration(ns / 1e9)) == pytest.approx(ns / 1e9, abs=2e-9)


@given(st.text(max_size=80))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds < math.inf


@pytest.mark.parametrize(("value", "said"), [(5, "5"), (1.5, "1.5"), (True, "True"), ([1], "of type list")])
def test_what_is_no_text_is_told_as_it_was_sent(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=f"^invalid duration {said}: write numbers with units"):
        parse_duration(value)  # type: ignore[arg-type]
