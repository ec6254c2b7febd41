"""A dict that stays bounded without ever being cleared at once."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """Keeps at least the `size` newest keys and at most twice as many.

    Two generations: a full young one becomes the old one, and what is used again moves back. No
    moment at which every lookup misses. Values are never None. `young` may be read directly.
    """

    __slots__ = ("_old", "_size", "young")

    def __init__(self, size: int) -> None:
        self.young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._size = size

    def find(self, key: K) -> V | None:
        """The value, or None."""
        value = self.young.get(key)
        return self.recall(key) if value is None else value

    def recall(self, key: K) -> V | None:
        """The value of a key that is not in `young`, or None."""
        value = self._old.get(key)
        if value is not None:
            self.put(key, value)
        return value

    def put(self, key: K, value: V) -> None:
        """Remember `value`."""
        if len(self.young) >= self._size:
            self._old, self.young = self.young, {}
        self.young[key] = value
