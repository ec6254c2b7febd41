"""Quantities as Kubernetes writes them ("500m", "512Mi", "1G", "2"): text to whole numbers and back."""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([eE][+-]?[0-9]{1,2})|([numkMGTPE]|[KMGTPE]i))?")
_SUFFIXES = {
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    "k": Decimal(10**3),
    **{letter: Decimal(1000 ** (n + 2)) for n, letter in enumerate("MGTPE")},
    **{letter + "i": Decimal(1024 ** (n + 1)) for n, letter in enumerate("KMGTPE")},
}
_TEXT_MAX = 32
_MAX = 2**63 - 1


def parse_bytes(quantity: str | int | float) -> int:
    """Bytes meant by a memory or storage quantity; part of a byte counts as one, as in Kubernetes.

    Raises:
        ValueError: it is no quantity, not positive or beyond 2^63; the text is fit for users.
    """
    return _whole(quantity, Decimal(1), 'such as "512Mi" or "1G"')


def parse_cpu_millis(quantity: str | int | float) -> int:
    """Thousandths of a processor meant by a CPU quantity ("500m" is 500, "2" is 2000). Raises ValueError."""
    return _whole(quantity, Decimal(1000), 'such as "500m" or "2"')


def parse_count(quantity: str | int | float) -> int:
    """A whole number of things. Raises ValueError."""
    return _whole(quantity, Decimal(1), 'such as "512"')


def _whole(quantity: str | int | float, scale: Decimal, example: str) -> int:
    if isinstance(quantity, bool) or not isinstance(quantity, str | int | float):
        raise ValueError(f"a quantity is text {example}")
    text = str(quantity)
    match = _NUMBER.fullmatch(text) if len(text) <= _TEXT_MAX else None
    if match is None:
        raise ValueError(f"invalid quantity {text[:_TEXT_MAX]!r}: write a number with a unit, {example}")
    number, exponent, suffix = match.groups()
    value = Decimal(number + (exponent or "")) * _SUFFIXES.get(suffix or "", Decimal(1)) * scale
    if not 0 < value <= _MAX:
        raise ValueError(f"invalid quantity {text!r}: it must be more than nothing and less than 2^63")
    return int(value.to_integral_value(ROUND_CEILING))
