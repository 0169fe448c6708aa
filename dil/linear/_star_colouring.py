"""Groups of the columns of a symmetric matrix, of which each entry can be read in one of two places."""

from __future__ import annotations

from typing import Any

from dil.linear._pattern import Pattern


def star_colours(pattern: Pattern, order: Any) -> Any:
    """Return the colour of each column of a symmetric pattern, (n,), with the columns coloured in an order.

    Columns that share an entry differ in colour, and four columns on a path of such entries have three colours at
    least. An entry (i, j) then stands alone in row i among the columns with the colour of j, or in row j among those
    with the colour of i, and is read there (Coleman and Moré 1984). A column takes the first colour that is none of its
    neighbours, none of the neighbours of one without a colour, and above those of the neighbours of another one that
    are below its own (Gebremedhin, Manne and Pothen 2005, section 4).
    """
    import numpy as np

    starts, rows = pattern.starts.tolist(), pattern.rows.tolist()
    # sets of colours as the bits of a number: those of the neighbours of a column, and its own
    around, own = [0] * pattern.n, [0] * pattern.n
    for j in order.tolist():
        column = rows[starts[j] : starts[j + 1]]
        used = 0
        for i in column:
            if i != j:
                colour = own[i]
                used |= colour | (around[i] & (colour - 1)) if colour else around[i]
        first = ~used & (used + 1)
        own[j] = first
        for i in column:
            if i != j:
                around[i] |= first
    return np.asarray([colour.bit_length() - 1 for colour in own], dtype=np.int32)


def places_of_entries(pattern: Pattern, colours: Any) -> Any:
    """Return where each entry of a symmetric pattern stands alone among the products with the seeds, (colours, n)."""
    import numpy as np

    rows, columns = pattern.rows.astype(np.int64), pattern.columns
    in_row, in_column = colours[columns] * pattern.n + rows, colours[rows] * np.int64(pattern.n) + columns
    together = np.bincount(in_row)
    return np.where(together[in_row] == 1, in_row, in_column)
