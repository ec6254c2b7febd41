import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentcube.wire.quantities import parse_bytes, parse_count, parse_cpu_millis


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("512Mi", 512 << 20),
        ("1G", 10**9),
        ("1Gi", 1 << 30),
        ("1.5Gi", 3 << 29),
        ("128974848", 128974848),
        (128974848, 128974848),
        ("129e6", 129_000_000),
        ("0.000001E", 10**12),
        ("16Ti", 16 << 40),
        ("1500m", 2),  # part of a byte counts as one
        ("2k", 2000),
    ],
)
def test_bytes(text, wanted) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize(("text", "wanted"), [("500m", 500), ("2", 2000), (2, 2000), (0.5, 500), ("100u", 1)])
def test_cpu_is_in_thousandths(text, wanted) -> None:
    assert parse_cpu_millis(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "1 Gi", "1gi", "Mi", "1MiB", "9" * 40, "1e99", True, None, "1e", "٣", "inf", "nan"],
)
def test_what_is_no_quantity_is_refused_by_name(text) -> None:
    with pytest.raises(ValueError):
        parse_bytes(text)


@given(st.text(max_size=12))
def test_any_text_gives_a_positive_number_or_a_value_error(text) -> None:
    try:
        number = parse_count(text)
    except ValueError:
        return
    assert 0 < number < 2**63


@pytest.mark.parametrize(
    ("parse", "text"),
    [(parse_bytes, "17Ti"), (parse_bytes, "7E"), (parse_cpu_millis, "1001"), (parse_count, "4194305")],
)
def test_what_no_machine_has_is_refused_with_the_limit(parse, text) -> None:
    with pytest.raises(ValueError, match=r"at most (17592186044416|1000|4194304)$"):
        parse(text)
