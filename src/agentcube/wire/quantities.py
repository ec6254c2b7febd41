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
BYTES_MAX = 16 << 40  # the largest file of ext4, and more memory than machines have
CPU_MILLIS_MAX = 1_000_000  # a thousand processors
COUNT_MAX = 1 << 22  # process ids of one Linux machine (PID_MAX_LIMIT)


def parse_bytes(quantity: str | int | float) -> int:
    """Bytes meant by a memory or storage quantity; part of a byte counts as one, as in Kubernetes.

    Raises:
        ValueError: it is no quantity, not positive or beyond any machine; the text is fit for users.
    """
    return _whole(quantity, Decimal(1), 'such as "512Mi" or "1G"', BYTES_MAX)


def parse_cpu_millis(quantity: str | int | float) -> int:
    """Thousandths of a processor meant by a CPU quantity ("500m" is 500, "2" is 2000). Raises ValueError."""
    return _whole(quantity, Decimal(1000), 'such as "500m" or "2"', CPU_MILLIS_MAX)


def parse_count(quantity: str | int | float) -> int:
    """A whole number of things. Raises ValueError."""
    return _whole(quantity, Decimal(1), 'such as "512"', COUNT_MAX)


def _whole(quantity: str | int | float, scale: Decimal, example: str, most: int) -> int:
    if isinstance(quantity, bool) or not isinstance(quantity, str | int | float):
        raise ValueError(f"a quantity is text {example}")
    text = str(quantity)
    match = _NUMBER.fullmatch(text) if len(text) <= _TEXT_MAX else None
    if match is None:
        raise ValueError(f"invalid quantity {text[:_TEXT_MAX]!r}: write a number with a unit, {example}")
    number, exponent, suffix = match.groups()
    value = Decimal(number + (exponent or "")) * _SUFFIXES.get(suffix or "", Decimal(1)) * scale
    if not 0 < value <= most:
        limit = Decimal(most) / scale
        raise ValueError(f"invalid quantity {text!r}: it must be more than nothing and at most {limit:f}")
    return int(value.to_integral_value(ROUND_CEILING))
