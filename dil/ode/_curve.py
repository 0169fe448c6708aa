"""The dense output of a solve, and its steps by their numbers."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, device
from dil._base.typing import Array
from dil.ode._dense import Segment


class Curve(NamedTuple):
    """States, slopes and times at M + 1 knots, and M bulges."""

    knots: Array
    states: Array
    slopes: Array
    bulges: Array

    def steps(self, i: Array) -> tuple[Array, Segment]:
        """Return the begins and the segments of the steps i, (K, *batch)."""
        begin = take(self.knots, i)
        ends = rows_of(self.states, i), rows_of(self.states, i + 1)
        slopes = rows_of(self.slopes, i), rows_of(self.slopes, i + 1)
        return begin, Segment(take(self.knots, i + 1) - begin, *ends, *slopes, rows_of(self.bulges, i))


def take(x: Array, i: Array) -> Array:
    """Return the entries i, of any shape, of a vector x."""
    xp = array_namespace(x)
    return xp.reshape(xp.take(x, xp.reshape(i, (-1,)), axis=0), i.shape)  # type: ignore[no-any-return]


def rows_of(x: Array, i: Array) -> Array:
    """Return the rows i, (K, *batch), of x, (M, *batch, n): row i of each problem, (K, *batch, n)."""
    xp, (rows, *batch, n) = array_namespace(x), x.shape
    if not batch:
        return xp.take(x, i, axis=0)  # type: ignore[no-any-return]
    flat = xp.reshape(xp.moveaxis(x, 0, -2), (-1, n))
    count = flat.shape[0] // rows
    first = xp.reshape(xp.arange(count, dtype=i.dtype, device=device(i)) * rows, tuple(batch))
    found = xp.take(flat, xp.reshape(i + first, (-1,)), axis=0)
    return xp.reshape(found, (*i.shape, n))  # type: ignore[no-any-return]
