"""A diagonal M such that the rows and columns of A M are those of a matrix whose units have been taken out."""

from __future__ import annotations

from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, full
from dil._base.operator import Operator
from dil._base.scalars import either
from dil._base.typing import Array
from dil._frameworks.loops import Loops
from dil._frameworks.protocol import Backend

ROUNDS = (1, 1, 2)
"""The vectors of each round. Each vector is multiplied by A and by its transpose."""
SPREAD = 0.3
"""The absolute values of the entries of a vector lie between 1 - SPREAD and 1 + SPREAD. Signs alone often cancel."""
PRODUCTS = 2 * sum(ROUNDS)


class Estimate(NamedTuple):
    """The state between two vectors. Vectors: (*batch, n)."""

    rows: Array
    columns: Array
    row_sums: Array
    """The sum of |R A C z| in this round."""
    column_sums: Array
    """The sum of |C A^T R z| in this round."""
    k: Any
    """The vectors so far: an int, or an array of shape () in a trace."""


def row_column_scales(A: Operator, like: Array, backend: Backend, loops: Loops) -> Array:
    """Return M = R C, where the rows and the columns of R A C have about equal norms; M: (*batch, n), like `like`.

    A random z gives |A z|, which is about the norms of the rows, and |A^T z| those of the columns. Each of three rounds
    divides R and C by the roots of what one or two vectors z give for R A C. The spectrum of A M is that of R A C, and
    the residual of A M y = b is that of A x = b for x = M y.

    Where A = D B with a diagonal D, or B D, or D B D, the units D are gone. Where A = D B D^-1 they cancel in M, as
    they should: A M and B have the same spectrum for M = 1.

    Sources: Ruiz 2001 (the rounds); Bradley and Murray 2011 (by products alone).
    """
    xp, n, A_T = array_namespace(like), like.shape[-1], A.T
    import numpy as np

    draw = np.random.default_rng(0)
    drawn = draw.choice([-1.0, 1.0], (sum(ROUNDS), n)) * draw.uniform(1 - SPREAD, 1 + SPREAD, (sum(ROUNDS), n))
    shape = (sum(ROUNDS), *(1,) * (like.ndim - 1), n)
    vectors = backend.asarray(drawn.reshape(shape), dtype=like.dtype, device=device(like)) + full(like, 0.0)
    zero, one = full(like, 0.0), full(like, 1.0)

    ends = [sum(ROUNDS[: i + 1]) for i in range(len(ROUNDS))]

    def advance(s: Estimate) -> Estimate:
        z = vectors[s.k, ...] if isinstance(s.k, int) else xp.take(vectors, s.k[None], axis=0)[0, ...]
        row_sums = s.row_sums + xp.abs(s.rows * A(s.columns * z))
        column_sums = s.column_sums + xp.abs(s.columns * A_T(s.rows * z))
        k, is_end = s.k + 1, s.k + 1 == ends[0]
        for end in ends[1:]:
            is_end = is_end | (k == end)
        return Estimate(
            either(is_end, lambda: s.rows / _root(row_sums), lambda: s.rows),
            either(is_end, lambda: s.columns / _root(column_sums), lambda: s.columns),
            either(is_end, lambda: zero, lambda: row_sums),
            either(is_end, lambda: zero, lambda: column_sums),
            k,
        )

    last: Estimate = loops.while_loop(lambda s: s.k < sum(ROUNDS), advance, Estimate(one, one, zero, zero, 0))
    size = xp.log(last.rows) + xp.log(last.columns)
    return xp.exp(size - xp.mean(size, axis=-1, keepdims=True))  # type: ignore[no-any-return]


def _root(sums: Array) -> Array:
    """Return the root of the sums, or one for a row of zeros, and for one that is not finite."""
    xp = array_namespace(sums)
    return xp.sqrt(xp.where((sums > 0) & xp.isfinite(sums), sums, full(sums, 1.0)))  # type: ignore[no-any-return]
