"""Durations as Go writes them ("1h30m", "300ms", "1.5s"). A leaf: standard library only, Python 3.9.

The wire, the manifests and PicoD all speak this format, so it is spelled once, here.
"""

from __future__ import annotations

import re

_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,  # U+00B5, what Go prints
    "μs": 1_000,  # U+03BC, which Go reads too
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_TERM = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|µs|μs|ms|s|m|h)")
_TEXT_MAX = 64
_NS_MAX = 2**63 - 1  # Go's time.Duration is an int64 of nanoseconds: 292 years


def parse_duration(text: str) -> float:
    """Seconds meant by a Go-style duration. Never negative, finite, exact to the nanosecond.

    Accepts what Go's `time.ParseDuration` accepts ("1h30m", "1.5h", ".5s", "0", "+2s"), except
    negative durations, for which nothing here has a use.

    Raises:
        ValueError: the text is no such duration; the message quotes it and is fit for users.
    """
    shown = _shown(text)
    wrong = ValueError(f'invalid duration {shown}: write numbers with units, such as "90s" or "1h30m"')
    if not isinstance(text, str) or not text or len(text) > _TEXT_MAX:
        raise wrong
    rest = text[1:] if text[0] == "+" else text
    if rest.startswith("-"):
        raise ValueError(f"invalid duration {shown}: it must not be negative")
    if rest == "0":
        return 0.0
    if not rest:
        raise wrong
    total, at = 0, 0
    while at < len(rest):
        term = _TERM.match(rest, at)
        if term is None or not (term[1] or term[2]):
            raise wrong
        unit = _UNITS_NS[term[3]]
        fraction = term[2] or ""
        total += int(term[1] or "0") * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
        at = term.end()
    if total > _NS_MAX:
        raise ValueError(f"invalid duration {shown}: it is longer than 292 years")
    return total / 1e9


def _shown(value: object) -> str:
    if isinstance(value, str):
        return repr(value[:_TEXT_MAX])
    if value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) <= _NS_MAX):
        return repr(value)
    return f"of type {type(value).__name__}"


def format_duration(seconds: float) -> str:
    """The shortest Go-style text of a non-negative duration, to the nanosecond: "1h30m", "1.5s", "300ms".

    `parse_duration` reads back the same number of nanoseconds.

    Raises:
        ValueError: the number is negative, not finite or longer than 292 years.
    """
    if not 0 <= seconds <= _NS_MAX / 1e9:
        raise ValueError(f"a duration cannot be {seconds!r} seconds")
    ns = round(seconds * 1e9)
    if ns == 0:
        return "0s"
    for unit in ("ns", "us", "ms"):
        if ns < _UNITS_NS[unit] * 1000:
            return _decimal(ns, _UNITS_NS[unit]) + unit
    hours, ns = divmod(ns, _UNITS_NS["h"])
    minutes, ns = divmod(ns, _UNITS_NS["m"])
    parts = [f"{hours}h" if hours else "", f"{minutes}m" if minutes else ""]
    if ns:
        parts.append(_decimal(ns, _UNITS_NS["s"]) + "s")
    return "".join(parts)


def _decimal(ns: int, unit: int) -> str:
    whole, rest = divmod(ns, unit)
    digits = len(str(unit)) - 1
    return f"{whole}.{rest:0{digits}d}".rstrip("0") if rest else str(whole)
