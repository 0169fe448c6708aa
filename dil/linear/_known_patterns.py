"""The patterns that were found, for each function and structure of its unknown."""

from __future__ import annotations

from dil._base.operator import Source
from dil.linear._kept_by_source import KeptBySource
from dil.linear._pattern import Pattern, union

MOST_FULLER = 2
"""A pattern that was wrong stays a part of the new one, unless that has more than this many times its own entries."""


class KnownPatterns:
    """The patterns of dF/du that were found. One that is wrong is seen, so it may serve any call of the same source."""

    def __init__(self) -> None:
        self._known = KeptBySource[Pattern]()
        self._pays = KeptBySource[bool]()

    def get(self, source: Source | None, n: int) -> Pattern | None:
        """Return the pattern of dF/du, if it is known."""
        return self._known.get(source, n)

    def add(self, source: Source | None, found: Pattern) -> Pattern:
        """Keep a pattern that was found, with the entries that were known before. Return both together.

        An entry may be zero at one point and not at the next. A function that comes with other captured data may have
        another pattern, to which the old one adds nothing.
        """
        before = self.get(source, found.n)
        if before is not None:
            both = union(before, found)
            found = both if both.rows.size <= MOST_FULLER * found.rows.size else found
        self._known.keep(source, found.n, value=found)
        return found

    def pays(self, source: Source, n: int, *, step: bool = False) -> bool | None:
        """Return whether a factorisation pays for the default solver, or None if nobody has looked.

        `step` asks for an inexact step of Newton's method, and otherwise for a solve to the full.
        """
        return self._pays.get(source, n, step) if self._pays.can_keep(source) else False

    def decide(self, source: Source, n: int, *, pays: bool, step: bool = False) -> None:
        """Keep whether a factorisation pays for the default solver."""
        self._pays.keep(source, n, step, value=pays)


KNOWN_PATTERNS = KnownPatterns()
