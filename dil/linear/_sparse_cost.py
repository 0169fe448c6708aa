"""What a sparse factorisation costs beside an iteration, by sizes alone."""

from __future__ import annotations

import math
from typing import Any

from dil.linear._pattern import Pattern, union
from dil.linear._sparse_factor import import_sparse

FLOPS_PER_NANOSECOND = 2.5
"""Of SuperLU on blocks of a grid."""
OVERHEAD = 1.4e6
"""Nanoseconds of a factorisation and its solves, however small."""
ENTRY = 200.0
"""Nanoseconds to order, place and scale an entry."""
NESTED, FRONT = 30.0, 10.0
"""Operations for each unknown and each unit of the width, as in the plane, and for each cube of the width, as in space.

The width of a matrix is the mean distance of the first entry of a row from the diagonal, in the order of Cuthill and
McKee. By nested dissection a grid of m x m points, of width m, takes some 20 m^3 operations, and one of m x m x m
points, of width m^2, some 10 m^6 (George 1973); minimum degree takes a little more.
"""
LONGEST = 512
"""The steps of an iteration that gains nothing in its first ones."""


def is_cheaper(pattern: Pattern, budget: float) -> bool:
    """Return whether a factorisation takes fewer nanoseconds than the budget."""
    both = pattern if pattern == pattern.T else union(pattern, pattern.T)
    # the order of the unknowns is often as good as one that takes time to find
    return _cost(pattern, _mean_width(both, None)) < budget or _cost(pattern, _least_width(both)) < budget


def _cost(pattern: Pattern, width: float) -> float:
    """Return the nanoseconds of a factorisation."""
    n, entries = pattern.n, pattern.rows.size
    flops = NESTED * n * width + FRONT * width**3 + 0.5 * entries**2 / n
    cost: float = OVERHEAD + ENTRY * entries + flops / FLOPS_PER_NANOSECOND
    return cost


def may_be_cheaper(n: int, budget: float) -> bool:
    """Return whether the factorisation of a matrix with three entries a row takes fewer nanoseconds than the budget."""
    return OVERHEAD + 3 * ENTRY * n < budget


def steps_to_come(first: int, error: float, rtol: float) -> float:
    """Return how many steps an iteration takes to rtol at the pace of its first ones, after which its error is given.

    The pace of the first steps promises too much or too little by a factor of some units; a factor that decides is
    larger, as a rule.
    """
    most = float(LONGEST)
    return min(most, first * math.log(rtol) / math.log(error)) if 0 < error < 1 else most


def _mean_width(both: Pattern, order: Any) -> float:
    """Return the width of a symmetric pattern in an order of its unknowns, or in their own."""
    import numpy as np

    place = np.arange(both.n)
    if order is not None:
        place[order] = np.arange(both.n)
    first = np.minimum.reduceat(place[both.rows], both.starts[:-1])
    return float(np.mean(place - first))


def _least_width(both: Pattern) -> float:
    """Return the width in the order of Cuthill and McKee."""
    import numpy as np
    from scipy.sparse.csgraph import reverse_cuthill_mckee

    ones = np.ones(both.rows.size, dtype=np.int8)
    matrix = import_sparse().csr_matrix((ones, both.rows, both.starts), shape=(both.n, both.n))
    return _mean_width(both, reverse_cuthill_mckee(matrix, symmetric_mode=True))
