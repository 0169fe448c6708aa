"""An approximation of A^-1 that grows from the directions of linear solves, and serves the next ones."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, dot, eye, full, select, size
from dil._base.typing import Array, Matvec
from dil._frameworks.protocol import Backend
from dil.linear._window import MOST_NUMBERS


class InverseMemory(NamedTuple):
    """What earlier solves have shown of A^-1. The batch axes are those of the right-hand side, (*batch, n).

    Attributes
    ----------
    z : float array, shape (*batch, m, n)
        Directions of earlier solves, newest first; unused rows are zero.
    w : float array, shape (*batch, m, n)
        Their images A z, of norm one. Those of one solve are orthogonal.
    gram : float array, shape (*batch, m, m)
        The products <w_i, w_j>.
    inverse : float array, shape (*batch, n, n) or (*batch, 0, 0)
        The inverse of an earlier A, if `is_inverted`; without entries where it would be too large.
    is_inverted : bool array, shape ()
    spent : float array, shape ()
        The products since the last inverse beyond the fewest of a solve.
    fewest : float array, shape ()
        The fewest products of a solve with this inverse; zero without one.
    plain : float array, shape ()
        The products of the last solve without the memory; zero before the first.
    failures : float array, shape ()
        The solves in a row in which the memory did not help.
    rest : float array, shape ()
        The number of solves to come that do without it.
    indefinite : bool array, shape batch
        Whether the last solve without the memory found a symmetric A that is not positive definite.
    """

    z: Array
    w: Array
    gram: Array
    inverse: Array
    is_inverted: Array
    spent: Array
    fewest: Array
    plain: Array
    failures: Array
    rest: Array
    indefinite: Array

    @staticmethod
    def empty(b: Array, rows: int) -> InverseMemory:
        """Return a memory without directions, with room for `rows` of them, for right-hand sides like b."""
        batch, n, xp = tuple(b.shape[:-1]), b.shape[-1], array_namespace(b)
        none, zero = full(b, 0.0, shape=(*batch, rows, n)), full(b, 0.0, shape=())
        side = n if size(b.shape) * n <= MOST_NUMBERS else 0
        gram, inverse = full(b, 0.0, shape=(*batch, rows, rows)), full(b, 0.0, shape=(*batch, side, side))
        never, no = (full(b, False, shape=shape, dtype=xp.bool) for shape in ((), batch))
        return InverseMemory(none, none, gram, inverse, never, zero, zero, zero, zero, zero, no)

    @property
    def can_invert(self) -> bool:
        """Whether there is room for an inverse."""
        return self.inverse.shape[-1] == self.z.shape[-1]

    def renewed(self, inverse: Array) -> InverseMemory:
        """Return a memory that holds the inverse of A alone."""
        zero = 0.0 * self.spent
        return self._replace(
            z=0.0 * self.z,
            w=0.0 * self.w,
            gram=0.0 * self.gram,
            inverse=inverse,
            is_inverted=self.is_inverted | True,
            spent=zero,
            fewest=zero + math.inf,
            failures=zero,
            rest=zero,
        )

    def with_cost(self, products: Array) -> InverseMemory:
        """Return the memory after a solve that took a number of products, shape ()."""
        fewest = array_namespace(self.fewest).minimum(self.fewest, products)
        return self._replace(fewest=fewest, spent=self.spent + products - fewest)

    def product(self, backend: Backend) -> Matvec:
        """Return the product with the approximation of A^-1 as a function of r, (*batch, n).

        It is what is left when each pair in turn, from the oldest to the newest, makes M a matrix with M w = z:
        M <- M (I - w w^T) + z w^T. The loop over the pairs is one solve with the triangle of <w_i, w_j>.

        Sources: Broyden 1965, the second method; Byrd, Nocedal and Schnabel 1994, for the triangle.
        """
        xp, (z, w) = array_namespace(self.z), (self.z, self.w)
        m = z.shape[-2]
        first = self._first(backend)
        if m == 0:
            return first
        L = xp.tril(self.gram, k=-1) + eye(m, self.gram)

        def product(r: Array) -> Array:
            t = backend.dense.triangular_solve(L, w @ r[..., None], upper=False)
            rest = r - (w.mT @ t)[..., 0]
            return (z.mT @ t)[..., 0] + first(rest)

        return product

    def _first(self, backend: Backend) -> Matvec:
        """Return the product with the first approximation: the inverse of an earlier A, or a multiple of I."""
        xp = array_namespace(self.z)
        # <z, w> / <w, w> of each pair: its mean has the size and the sign of A^-1
        used = xp.sum(dot(self.w, self.w), axis=-2)
        mean = xp.sum(dot(self.z, self.w), axis=-2) / xp.where(used > 0, used, full(used, 1.0))
        multiple = xp.where(mean == 0, full(mean, 1.0), mean)
        if not self.can_invert:
            return lambda r: multiple * r
        known = backend.loops.number(self.is_inverted)
        if known is False:
            return lambda r: multiple * r
        if known is True:
            return lambda r: (self.inverse @ r[..., None])[..., 0]
        inverse = select(self.is_inverted, self.inverse, multiple[..., None] * eye(self.z.shape[-1], self.z))
        return lambda r: (inverse @ r[..., None])[..., 0]

    def remember(self, z: Array, w: Array, count: Any) -> InverseMemory:
        """Return the memory with the pairs of one solve in front: `count` of them, oldest first in z and w."""
        xp, rows = array_namespace(z), z.shape[-2]
        z, w = xp.flip(z, axis=-2), xp.flip(w, axis=-2)
        if isinstance(count, int):
            z, w = z[..., rows - count :, :], w[..., rows - count :, :]
            cross = w @ self.w.mT
            new, old = xp.concat([w @ w.mT, cross], axis=-1), xp.concat([cross.mT, self.gram], axis=-1)
            gram = xp.concat([new, old], axis=-2)[..., :rows, :rows]
            z, w = (xp.concat([a, b], axis=-2)[..., :rows, :] for a, b in ((z, self.z), (w, self.w)))
            return self._replace(z=z, w=w, gram=gram)
        # the shapes of a program are fixed, so the unused rows are cut off by their places
        places = xp.arange(rows, device=device(z)) + (rows - count)
        z, w = (xp.take(xp.concat([a, b], axis=-2), places, axis=-2) for a, b in ((z, self.z), (w, self.w)))
        return self._replace(z=z, w=w, gram=w @ w.mT)
