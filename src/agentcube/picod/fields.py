"""Members of JSON bodies and queries, each checked and named when it is wrong."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from typing import Any

from agentcube.durations import format_duration, parse_duration
from agentcube.picod.config import env_map
from agentcube.picod.problems import Problem


def only(body: dict[str, Any], known: Collection[str]) -> None:
    """Raise Problem `invalid` for a member of the body that is not `known`."""
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise Problem("invalid", f"unknown field {unknown[0]!r}")


def text(body: dict[str, Any], name: str, default: str = "") -> str:
    """A text without NUL that the system can take as bytes."""
    value = body.get(name, default)
    if not isinstance(value, str) or "\x00" in value:
        raise Problem("invalid", f"{name} must be a text without NUL")
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Problem("invalid", f"{name}: half of a surrogate pair is no text") from None
    return value


def flag(body: dict[str, Any], name: str, *, default: bool = False) -> bool:
    """True or false."""
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise Problem("invalid", f"{name} must be true or false")
    return value


def environment(body: dict[str, Any]) -> dict[str, str]:
    """The body's `env`; empty without."""
    env = body.get("env")
    try:
        return {} if env is None else env_map("env", env)
    except ValueError as exc:
        raise Problem("invalid", str(exc)) from None


def duration(name: str, value: Any, most_s: float, *, zero: bool = False) -> float:
    """Seconds of a duration such as "30s", more than 0 (or from 0) and at most `most_s`."""
    try:
        seconds = parse_duration(value)
    except ValueError as exc:
        raise Problem("invalid", f"{name}: {exc}") from None
    if not (0 < seconds <= most_s or (zero and seconds == 0)):
        least = "at least" if zero else "more than"
        raise Problem("invalid", f"{name} must be {least} 0 and at most {format_duration(most_s)}")
    return seconds


def from_base64(name: str, value: Any) -> bytes:
    """The bytes that the member `name` holds in base64."""
    if not isinstance(value, str):
        raise Problem("invalid", f"{name} must be a text in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        raise Problem("invalid", f"{name} is no base64") from None


def number(query: dict[str, str], name: str, default: int) -> int:
    """A whole number of a query, from 0."""
    value = query.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise Problem("invalid", f"{name} must be a whole number")
    return int(value)


def choice(query: dict[str, str], name: str, among: tuple[str, ...]) -> str:
    """One of a few words of a query; the first is the default."""
    value = query.get(name, among[0])
    if value not in among:
        raise Problem("invalid", f"{name} must be {', '.join(among[:-1])} or {among[-1]}")
    return value
