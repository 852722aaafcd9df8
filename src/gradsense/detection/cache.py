"""A bounded memory of verdicts. IoT devices say the same few things all day."""

from __future__ import annotations

from typing import Generic, TypeVar

Value = TypeVar("Value")


class Cache(Generic[Value]):
    """Keeps at least the last ``size / 2`` distinct keys that were used, and at most ``size``.

    Two generations instead of a list in order of use: when the young one is full it becomes the
    old one, and whatever is not used meanwhile goes with the next change. A look-up is one or two
    of a dictionary, and nothing is moved about on a hit in the young generation.

    Args:
        size: entries at most; 0 keeps nothing.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._young: dict[bytes, Value] = {}
        self._old: dict[bytes, Value] = {}

    def get(self, key: bytes) -> Value | None:
        """What was put under the key, or None if it is not here (any more)."""
        value = self._young.get(key)
        if value is None:
            value = self._old.get(key)
            if value is not None:
                self.put(key, value)
        return value

    def put(self, key: bytes, value: Value) -> None:
        """Keep ``value``, which is not None."""
        if not self.size:
            return
        if len(self._young) >= max(1, self.size // 2):
            self._old, self._young = self._young, {}
        self._young[key] = value

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
