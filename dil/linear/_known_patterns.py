"""The patterns that were found, for each function and structure of its unknown."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from dil._base.operator import Source
from dil.linear._pattern import Pattern, union

MOST_FULLER = 2
"""A pattern that was wrong stays a part of the new one, unless that has more than this many times its own entries."""


class KnownPatterns:
    """The patterns of dF/du that were found. One that is wrong is seen, so it may serve any call of the same source."""

    def __init__(self) -> None:
        self._known: WeakKeyDictionary[Any, dict[Any, Pattern]] = WeakKeyDictionary()
        self._pays: WeakKeyDictionary[Any, dict[Any, bool]] = WeakKeyDictionary()

    def get(self, source: Source | None, n: int) -> Pattern | None:
        """Return the pattern of dF/du, if it is known."""
        try:
            return None if source is None else self._known.get(source.fn, {}).get((n, source.key))
        except TypeError:  # an object without a hash or without weak references
            return None

    def add(self, source: Source | None, found: Pattern) -> Pattern:
        """Keep a pattern that was found, with the entries that were known before. Return both together.

        An entry may be zero at one point and not at the next. A function that comes with other captured data may have
        another pattern, to which the old one adds nothing.
        """
        before = self.get(source, found.n)
        if before is not None:
            both = union(before, found)
            found = both if both.rows.size <= MOST_FULLER * found.rows.size else found
        if source is not None:
            try:
                self._known.setdefault(source.fn, {})[found.n, source.key] = found
            except TypeError:  # as above
                return found
        return found

    def pays(self, source: Source, n: int, *, step: bool = False) -> bool | None:
        """Return whether a factorisation pays for the default solver, or None if nobody has looked.

        `step` asks for an inexact step of Newton's method, and otherwise for a solve to the full.
        """
        try:
            return self._pays.get(source.fn, {}).get((n, source.key, step))
        except TypeError:  # as above
            return False

    def decide(self, source: Source, n: int, *, pays: bool, step: bool = False) -> None:
        """Keep whether a factorisation pays for the default solver."""
        try:
            self._pays.setdefault(source.fn, {})[n, source.key, step] = pays
        except TypeError:  # as above
            return


KNOWN_PATTERNS = KnownPatterns()
