"""An approximation of A^-1 that grows from the directions of linear solves, and serves the next ones."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, dot, eye, full, select, size
from dil._base.typing import Array, Arrays, Matvec
from dil._frameworks.loops import Loops
from dil._frameworks.protocol import Backend
from dil.linear._thin import along, combined
from dil.linear._window import MOST_NUMBERS

LONGEST_REST = 64.0
"""The most solves in a row that do without the memory after it did not help."""


class Record(NamedTuple):
    """What the memory has cost and saved so far; numbers of shape ()."""

    spent: Array
    """The products since the last inverse beyond the fewest of a solve."""
    fewest: Array
    """The fewest products of a solve with this inverse; zero without one."""
    plain: Array
    """The products of the last solve without the memory; zero before the first."""
    failures: Array
    """The solves in a row in which the memory did not help."""
    rest: Array
    """The number of solves to come that do without it."""
    used: Array
    """The rows of z and w in use: the last ones."""

    def with_inverse(self) -> Record:
        """Return the record of a memory that holds an inverse of A alone."""
        zero = 0.0 * self.spent
        return Record(zero, zero + math.inf, self.plain, zero, zero, zero)

    def with_cost(self, products: Array) -> Record:
        """Return the record after a solve that took a number of products, shape ()."""
        fewest = array_namespace(self.fewest).minimum(self.fewest, products)
        return self._replace(fewest=fewest, spent=self.spent + products - fewest)

    def with_attempt(self, failed: Array) -> Record:
        """Return the record after a solve with the memory: it rests after failures, each time twice as long."""
        xp, zero = array_namespace(failed), 0.0 * self.failures
        failures = xp.where(failed, self.failures + 1.0, zero)
        rest = xp.where(failed, xp.minimum(2.0**failures, zero + LONGEST_REST), zero)
        return self._replace(failures=failures, rest=rest)


class InverseMemory(NamedTuple):
    """What earlier solves have shown of A^-1. The batch axes are those of the right-hand side, (*batch, n).

    Attributes
    ----------
    z : float array, shape (*batch, m, n)
        Directions of earlier solves, oldest first; unused rows are zero, and come before them.
    w : float array, shape (*batch, m, n)
        Their images A z, of norm one. Those of one solve are orthogonal.
    gram : float array, shape (*batch, m, m)
        The products <w_i, w_j>.
    inverse : float array, shape (*batch, n, n) or (*batch, 0, 0)
        The inverse of an earlier A, if `is_inverted`; without entries where it would be too large.
    is_inverted : bool array, shape ()
    indefinite : bool array, shape batch
        Whether the last solve without the memory found a symmetric A that is not positive definite.
    record : Record
        What the memory has cost and saved.
    """

    z: Array
    w: Array
    gram: Array
    inverse: Array
    is_inverted: Array
    indefinite: Array
    record: Record

    @staticmethod
    def empty(b: Array, rows: int) -> InverseMemory:
        """Return a memory without directions, with room for `rows` of them, for right-hand sides like b."""
        batch, n, xp = tuple(b.shape[:-1]), b.shape[-1], array_namespace(b)
        none, zero = full(b, 0.0, shape=(*batch, rows, n)), full(b, 0.0, shape=())
        side = n if size(b.shape) * n <= MOST_NUMBERS else 0
        gram, inverse = full(b, 0.0, shape=(*batch, rows, rows)), full(b, 0.0, shape=(*batch, side, side))
        never, no = (full(b, False, shape=shape, dtype=xp.bool) for shape in ((), batch))
        return InverseMemory(none, none, gram, inverse, never, no, Record(*(zero,) * len(Record._fields)))

    @staticmethod
    def of(arrays: Arrays) -> InverseMemory:
        """Return the memory with these arrays."""
        z, w, gram, inverse, is_inverted, indefinite, *record = arrays
        return InverseMemory(z, w, gram, inverse, is_inverted, indefinite, Record(*record))

    @property
    def arrays(self) -> Arrays:
        """All arrays, for `of`."""
        return (*self[:-1], *self.record)

    @property
    def can_invert(self) -> bool:
        """Whether there is room for an inverse."""
        return self.inverse.shape[-1] == self.z.shape[-1]

    def renewed(self, inverse: Array) -> InverseMemory:
        """Return a memory that holds the inverse of A alone."""
        return self._replace(
            z=0.0 * self.z,
            w=0.0 * self.w,
            gram=0.0 * self.gram,
            inverse=inverse,
            is_inverted=self.is_inverted | True,
            record=self.record.with_inverse(),
        )

    def product(self, backend: Backend) -> Matvec:
        """Return the product with the approximation of A^-1 as a function of r, (*batch, n).

        It is what is left when each pair in turn, from the oldest to the newest, makes M a matrix with M w = z:
        M <- M (I - w w^T) + z w^T. The loop over the pairs is one solve with the triangle of <w_i, w_j>, whose inverse
        is made here, since many products follow.

        Sources: Broyden 1965, the second method; Byrd, Nocedal and Schnabel 1994, for the triangle.
        """
        z, w, gram = self._used(backend.loops)
        first = _first(self, z, w, backend.loops)
        m, xp = z.shape[-2], array_namespace(z)
        if m == 0:
            return first
        identity = eye(m, gram)
        triangle = xp.triu(gram, k=1) + identity
        inverse = backend.dense.triangular_solve(triangle, identity + 0.0 * gram, upper=True)

        def product(r: Array) -> Array:
            t = along(inverse, along(w, r))
            return combined(t, z) + first(r - combined(t, w))

        return product

    def _used(self, loops: Loops) -> tuple[Array, Array, Array]:
        """Return z, w and gram without the rows that are known to be unused."""
        used = loops.number(self.record.used)
        k = self.z.shape[-2] - int(used) if isinstance(used, float) else 0
        return self.z[..., k:, :], self.w[..., k:, :], self.gram[..., k:, k:]

    def remember(self, z: Array, w: Array, count: Any) -> InverseMemory:
        """Return the memory with `count` pairs of one solve, the first ones of z and w, after those that it has."""
        xp, rows = array_namespace(z), self.z.shape[-2]
        record = self.record._replace(used=xp.minimum(self.record.used + count, 0.0 * self.record.used + rows))
        if isinstance(count, int):
            z, w = z[..., :count, :], w[..., :count, :]
            old, cross = self.w[..., count:, :], w @ self.w[..., count:, :].mT
            upper = xp.concat([self.gram[..., count:, count:], cross.mT], axis=-1)
            gram = xp.concat([upper, xp.concat([cross, w @ w.mT], axis=-1)], axis=-2)
            z = xp.concat([self.z[..., count:, :], z], axis=-2)
            return self._replace(z=z, w=xp.concat([old, w], axis=-2), gram=gram, record=record)
        # the shapes of a program are fixed, so the rows are cut out by their places
        places = xp.arange(rows, device=device(z)) + count
        z, w = (xp.take(xp.concat([a, b], axis=-2), places, axis=-2) for a, b in ((self.z, z), (self.w, w)))
        return self._replace(z=z, w=w, gram=w @ w.mT, record=record)


def _first(memory: InverseMemory, z: Array, w: Array, loops: Loops) -> Matvec:
    """Return the product with the first approximation: the inverse of an earlier A, or a multiple of I."""
    xp, inverse = array_namespace(z), memory.inverse
    # <z, w> / <w, w> of each pair: its mean has the size and the sign of A^-1
    size_w = xp.sum(dot(w, w), axis=-2)
    mean = xp.sum(dot(z, w), axis=-2) / xp.where(size_w > 0, size_w, full(size_w, 1.0))
    multiple = xp.where(mean == 0, full(mean, 1.0), mean)
    known = loops.number(memory.is_inverted) if memory.can_invert else False
    if known is False:
        return lambda r: multiple * r
    if known is True:
        return lambda r: along(inverse, r)
    inverse = select(memory.is_inverted, inverse, multiple[..., None] * eye(z.shape[-1], z))
    return lambda r: along(inverse, r)
