"""The first residuals of conjugate gradients, kept so that rounding does not lose what they have found."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, full, select, size
from dil._base.scalars import Scalar, Scalars
from dil._base.typing import Array
from dil._frameworks.loops import Loops

MOST_ROWS = 64
"""The most residuals that are kept."""
MOST_NUMBERS = 2**22
"""The most numbers that the residuals of a batch may take: 32 MiB in float64."""
GROWS_BY = 16
FEWEST_ROWS = 8
"""Fewer residuals than this are not kept."""


class Window(NamedTuple):
    """The first residuals of conjugate gradients, each of norm one. In exact arithmetic they are orthogonal.

    Rounding brings back components along directions that are solved, and the iteration repeats its work there. It does
    so where some eigenvalues are far from the others. A random sum of the residuals shows this at the price of one
    inner product: <sum, r> is about the norm of the component of r in their span.

    Sources: Simon 1984 (orthogonality to sqrt(eps) is enough); Saad 2003, section 6.5 (reorthogonalisation).
    """

    rows: Array
    """(*batch, m, n); rows that are not yet used are zero."""
    sum: Array
    """The sum of the rows with random signs, (*batch, n)."""
    count: Any
    """The rows in use, the same for all problems: an int, or an array of shape () in a trace."""

    @staticmethod
    def empty(like: Array, *, grows: bool) -> Window:
        """Return a window without residuals, for vectors like `like`, (*batch, n).

        A window that grows has no room before it has a residual. A program that is compiled reserves it all.
        """
        rows = 0 if grows else most_rows(like)
        return Window(full(like, 0.0, shape=(*like.shape[:-1], rows, like.shape[-1])), full(like, 0.0), 0)

    @property
    def used(self) -> bool:
        """Whether residuals are kept at all."""
        return most_rows(self.sum) > 0

    @property
    def full(self) -> bool:
        """Whether it is known that there is no room for a residual more."""
        return isinstance(self.count, int) and self.count >= most_rows(self.sum)

    def with_row(self, v: Array, loops: Loops, wanted: Any = True) -> Window:
        """Return the window with one more residual v, of norm one or zero, if it is wanted and there is room."""
        xp, most, k = array_namespace(v), most_rows(v), self.count
        if most == 0 or self.full:
            return self
        signs = _signs(most)
        if isinstance(k, int):
            rows = loops.set_row(self._with_room(most).rows, k, v)
            return Window(rows, self.sum + signs[k] * v, k + 1)
        has_room = wanted & (k < most)
        place = xp.where(has_room, k, most - 1)
        row = xp.where(has_room, v, self.rows[..., most - 1, :])
        sign = xp.take(xp.asarray(signs, dtype=v.dtype), place[None], axis=0)
        added = xp.where(has_room, sign * v, 0.0)
        return Window(loops.set_row(self.rows, place, row), self.sum + added, xp.where(has_room, k + 1, k))

    def _with_room(self, most: int) -> Window:
        """Return the window with room for a residual, twice as much as before where there is none."""
        xp, room = array_namespace(self.sum), self.rows.shape[-2]
        if self.count < room:
            return self
        more = full(
            self.sum, 0.0, shape=(*self.sum.shape[:-1], min(max(room, GROWS_BY), most - room), self.sum.shape[-1])
        )
        return self._replace(rows=xp.concat([self.rows, more], axis=-2))

    def component(self, r: Array, scalars: Scalars) -> Scalar:
        """Return about the norm of the component of r in the span of the rows, which should be zero."""
        return abs(scalars.dot(self.sum, r))

    def orthogonal(self, r: Array) -> Array:
        """Return r without its components along the rows."""
        # where the count is known, the rows that are still zero cost nothing
        V = self.rows[..., : self.count, :] if isinstance(self.count, int) else self.rows
        if r.ndim == 1:
            return r - (V @ r) @ V
        return r - (V.mT @ (V @ r[..., None]))[..., 0]

    def without(self, mask: Scalar) -> Window:
        """Return the window without the residuals of the problems in the mask."""
        if mask is False:
            return self
        wide = mask if isinstance(mask, bool) or mask.ndim == 0 else mask[..., None]
        return Window(select(wide, 0.0 * self.rows, self.rows), select(mask, 0.0 * self.sum, self.sum), self.count)


def most_rows(like: Array) -> int:
    """Return how many residuals like `like`, (*batch, n), are kept."""
    rows = min(MOST_ROWS, like.shape[-1], MOST_NUMBERS // max(size(like.shape), 1))
    return rows if rows >= FEWEST_ROWS else 0


@lru_cache(maxsize=8)
def _signs(count: int) -> tuple[float, ...]:
    import numpy as np

    return tuple(np.random.default_rng(0).choice([-1.0, 1.0], count).tolist())
