"""Groups of columns that share no row, so that one product gives the entries of a whole group."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from dil.linear._pattern import Pattern


@dataclass(frozen=True)
class Colouring:
    """The colour of each column of a pattern. Columns of one colour share no row."""

    count: int
    colours: Any
    """The colour of each column, (n,)."""
    places: Any
    """The place of each entry of the pattern among the products with the seeds, (count, n), in C order.

    The seed of a colour is one in its columns and zero elsewhere.
    """


@lru_cache(maxsize=8)
def coloured(pattern: Pattern) -> Colouring:
    """Return groups of the columns of a pattern: largest first, each with the first colour that its rows leave it.

    Sources: Curtis, Powell and Reid 1974 (groups of columns); Coleman and Moré 1983, section 4 (the order).
    """
    import numpy as np

    colours = _greedy(pattern)
    places = colours[pattern.columns].astype(np.int64) * pattern.n + pattern.rows
    return Colouring(int(colours.max(initial=-1)) + 1, colours, places)


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
