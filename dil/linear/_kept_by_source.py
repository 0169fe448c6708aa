"""What is kept for a function and the structure of its unknown, as long as the function lives."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from dil._base.operator import Source

V = TypeVar("V")


class KeptBySource(Generic[V]):
    """Values for each source of a matrix, with keys of their own. Nothing is kept for a function without a hash."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Any, dict[Hashable, V]] = WeakKeyDictionary()

    def get(self, source: Source | None, *key: Hashable) -> V | None:
        """Return what is kept, or None."""
        try:
            return None if source is None else self._kept.get(source.fn, {}).get((source.key, *key))
        except TypeError:  # an object without a hash or without weak references
            return None

    def can_keep(self, source: Source) -> bool:
        """Return whether values of a source can be kept."""
        try:
            self._kept.get(source.fn)
        except TypeError:  # as above
            return False
        return True

    def keep(self, source: Source | None, *key: Hashable, value: V) -> None:
        """Keep a value, if that is possible."""
        if source is None:
            return
        try:
            self._kept.setdefault(source.fn, {})[source.key, *key] = value
        except TypeError:  # as above
            return
