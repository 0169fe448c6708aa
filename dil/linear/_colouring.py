"""Groups of columns that share no row, so that one product gives the entries of a whole group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dil.linear._pattern import Pattern
from dil.linear._star_colouring import places_of_entries, star_colours

MOST_MORE, MOST_IN_A_ROW = 4, 64
"""Remainders may give this many colours more than the fullest row has entries, which are at most the second number."""


@dataclass(frozen=True)
class Colouring:
    """The colour of each column of a pattern, so that each entry can be read from the products with the seeds."""

    count: int
    colours: Any
    """The colour of each column, (n,)."""
    places: Any
    """The place of each entry of the pattern among the products with the seeds, (count, n), in C order.

    The seed of a colour is one in its columns and zero elsewhere.
    """


@lru_cache(maxsize=8)
def coloured(pattern: Pattern, *, symmetric: bool = False) -> Colouring:
    """Return groups of the columns of a pattern: by the remainders of their numbers, or largest first.

    The remainders separate the columns of a regular grid, and take no time. Otherwise each column has the first colour
    that its rows leave it; or, for a `symmetric` matrix, that a star colouring leaves it. Sources: Curtis, Powell and
    Reid 1974 (groups of columns, by remainders for a band); Coleman and Moré 1983, section 4 (the order).
    """
    import numpy as np

    colours = _by_remainders(pattern)
    by_star = colours is None and symmetric and pattern == pattern.T
    if by_star:
        colours = star_colours(pattern, _largest_first(pattern))
        places = places_of_entries(pattern, colours)
    else:
        colours = _greedy(pattern) if colours is None else colours
        places = colours[pattern.columns].astype(np.int64) * pattern.n + pattern.rows
    return Colouring(int(colours.max(initial=-1)) + 1, colours, places)


def _by_remainders(pattern: Pattern) -> Any:
    """Return the colour j mod m of each column j, for the least m that separates the columns of all rows.

    Return None if m would be much larger than the number of entries of a row, which is the least number of colours.
    """
    import numpy as np

    by_column = pattern.T
    starts, columns = by_column.starts, by_column.rows
    most = int(np.diff(starts).max(initial=0))
    if most > MOST_IN_A_ROW:
        return None
    apart = np.zeros(pattern.n + 1, dtype=bool)
    row = by_column.columns
    for gap in range(1, most):
        together = row[gap:] == row[:-gap]
        apart[(columns[gap:] - columns[:-gap])[together]] = True
    distances = np.flatnonzero(apart)
    for count in range(max(most, 1), most + MOST_MORE + 1):
        if np.all(distances % count):
            return np.arange(pattern.n, dtype=np.int32) % count
    return None


def _greedy(pattern: Pattern) -> Any:
    """Return the colour of each column.

    Each row holds the set of its colours as the bits of a number, so no graph of the columns is made.
    """
    import numpy as np

    starts, rows = pattern.starts.tolist(), pattern.rows.tolist()
    taken, colours = [0] * pattern.n, [0] * pattern.n
    for j in _largest_first(pattern).tolist():
        column = rows[starts[j] : starts[j + 1]]
        used = 0
        for i in column:
            used |= taken[i]
        first = ~used & (used + 1)
        for i in column:
            taken[i] |= first
        colours[j] = first.bit_length() - 1
    return np.asarray(colours, dtype=np.int32)


def _largest_first(pattern: Pattern) -> Any:
    """Return the columns by how many others they meet, counted once for each row that they share."""
    import numpy as np

    if pattern.n == 0:
        return np.arange(0)
    in_row = np.bincount(pattern.rows, minlength=pattern.n)
    met = np.add.reduceat(in_row[pattern.rows], pattern.starts[:-1])
    return np.argsort(-met, kind="stable")
