"""What a caller asked for: members of a JSON object, or fields of a query, taken one by one and checked."""

from __future__ import annotations

from typing import Any, TypeVar

from agentcube.picod.files.entries import parse_mode, parse_time
from agentcube.picod.problems import Problem

D = TypeVar("D")


def encoded(path: str) -> bytes:
    """A path's bytes; surrogates stand for those that are no UTF-8. Problem when that cannot be."""
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Problem("invalid", "the path holds half of a surrogate pair") from None


class Asked:
    """Members by name. Absent and null are the same: the default. `done` refuses what nobody took."""

    def __init__(self, members: dict[str, Any], *, query: bool = False) -> None:
        self._members = {key: value for key, value in members.items() if value is not None}
        self._query = query

    def done(self) -> None:
        """All was taken. Problem when there is something that nobody knows."""
        for name in sorted(self._members):
            raise Problem("invalid", f"unknown {'query field' if self._query else 'field'} {name[:64]!r}")

    def has(self, name: str) -> bool:
        """Whether it is there, and not taken yet."""
        return name in self._members

    def text(self, name: str, default: D) -> str | D:
        """A text."""
        value = self._members.pop(name, default)
        if value is not default and not isinstance(value, str):
            raise Problem("invalid", f"{name} must be a text")
        return value

    def path(self, name: str, default: str | None = None) -> bytes:
        """A path; without a default it must be given."""
        value = self.text(name, default)
        if value is None or (value == "" and default is None):
            raise Problem("invalid", f"{name} must be a path, a text")
        return encoded(value)

    def flag(self, name: str, default: D) -> bool | D:
        """True or false."""
        value = self._members.pop(name, default)
        if self._query and value in ("true", "false"):
            return bool(value == "true")
        if value is not default and not isinstance(value, bool):
            raise Problem("invalid", f"{name} must be true or false")
        return value

    def number(self, name: str, least: int, most: int, default: D) -> int | D:
        """A whole number."""
        value = self._members.pop(name, default)
        if value is default:
            return default
        if self._query and isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise Problem("invalid", f"{name} must be a whole number from {least} to {most}")
        return value

    def mode(self, name: str, default: D) -> int | D:
        """Permissions, as octal text."""
        value = self.text(name, default)
        return parse_mode(value) if isinstance(value, str) else default

    def time_ns(self, name: str) -> int | None:
        """A time (RFC 3339), in nanoseconds since 1970."""
        value = self.text(name, None)
        return None if value is None else parse_time(value)
