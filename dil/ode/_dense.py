"""Dense output: polynomials through the states and the slopes at both ends of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, nonzero_or_one
from dil._base.typing import Array
from dil._frameworks.protocol import Backend
from dil.ode._rows_of import rows_of


class Segment(NamedTuple):
    """The polynomial over one step, or over several in a further dimension. All but the length: (*batch, n)."""

    length: Array
    """Shape (), (*batch, 1) with own steps, or like the states with a last dimension of one."""
    start: Array
    """The state where the step begins."""
    end: Array
    first_slope: Array
    last_slope: Array
    bulge: Array | None

    def at(self, s: Array | float) -> Array:
        """Return the states at the fraction s of the step: zero is its begin, and one its end."""
        y, z, k, m, h = self.start, self.end, self.first_slope, self.last_slope, self.length
        rest = 1.0 - s
        chord = z - y
        state: Array = y + s * chord + s * rest * (rest * (h * k - chord) - s * (h * m - chord))
        if self.bulge is None:
            return state
        flat = s * rest
        return state + 16.0 * flat * flat * self.bulge

    def at_all(self, fractions: Sequence[float]) -> list[Array]:
        """Return the states at several fractions by one product."""
        h, bulge = self.length, [] if self.bulge is None else [self.bulge]
        parts = [self.start, self.end, h * self.first_slope, h * self.last_slope, *bulge]
        xp, place = array_namespace(self.end), device(self.end)
        rows = [_weights(s)[: len(parts)] for s in fractions]
        states = xp.tensordot(xp.asarray(rows, dtype=self.end.dtype, device=place), xp.stack(parts), axes=1)
        return [states[i, ...] for i in range(len(fractions))]


def _weights(s: float) -> list[float]:
    """Return the weights of both states, h times both slopes, and the bulge in the state at the fraction s."""
    rest = 1.0 - s
    end = s + s * rest * (s - rest)
    return [1.0 - end, end, s * rest * rest, -s * s * rest, 16.0 * s * s * rest * rest]


def interpolate(
    backend: Backend,
    t: Array,
    knots: Array,
    states: Array,
    slopes: Array,
    bulges: Array | None,
    *,
    extends: bool = False,
) -> Array:
    """Return the states at the times t, (T, *batch, n), from states and slopes at the knots, (M + 1, *batch, n).

    The error of the cubic is of order 4 in the step, so methods of order 3 or lower keep their order (Hairer, Nørsett
    and Wanner 1993, II.6). The bulges, (M, *batch, n), are its errors in the middle of the steps: with them the
    polynomial is of degree 4 and its error of order 5. A time after the end of an incomplete mesh gets its last state,
    or the value of the last polynomial if it `extends`. With own steps, the knots are (M + 1, *batch).
    """
    xp, plain, own = array_namespace(t), backend.constant, knots.ndim > 1
    begins, lengths = knots[:-1, ...], knots[1:, ...] - knots[:-1, ...]
    used = plain(lengths) > 0
    before = used[None, ...] & (plain(begins)[None, ...] <= plain(t)[(slice(None), *(None,) * knots.ndim)])
    step = xp.sum(xp.astype(before, xp.int32), axis=1) - 1
    step = xp.where(step < 0, 0 * step, step)

    def at(x: Array, shift: int = 0) -> Array:
        if own:
            return rows_of(x, step + shift)
        return array_namespace(x).take(x, step + shift, axis=0)  # type: ignore[no-any-return]

    def column(x: Array) -> Array:
        return array_namespace(x).reshape(x, (t.shape[0], *(1,) * (states.ndim - 1)))  # type: ignore[no-any-return]

    h, begin = (at(x[..., None]) if own else column(at(x)) for x in (lengths, begins))
    s = (column(t) - begin) / nonzero_or_one(h)
    if not extends:
        s = array_namespace(s).where(plain(s) > 1.5, xp.astype(plain(h) > 0, s.dtype), s)
    bulge = None if bulges is None else at(bulges)
    return Segment(h, at(states), at(states, 1), at(slopes), at(slopes, 1), bulge).at(s)
