"""Dense output: polynomials through the states and the slopes at both ends of a step."""

from __future__ import annotations

from dil._base.arrays import array_namespace, nonzero_or_one
from dil._base.typing import Array
from dil._frameworks.protocol import Backend


def interpolate(backend: Backend, t: Array, knots: Array, states: Array, slopes: Array, bulges: Array | None) -> Array:
    """Return the states at the times t, (T, *batch, n), from states and slopes at the knots, (M + 1, *batch, n).

    The error of the cubic is of order 4 in the step, so methods of order 3 or lower keep their order (Hairer, Nørsett
    and Wanner 1993, II.6). The bulges, (M, *batch, n), are its errors in the middle of the steps: with them the
    polynomial is of degree 4 and its error of order 5.
    """
    xp, plain = array_namespace(t), backend.constant
    begins, lengths = knots[:-1], knots[1:] - knots[:-1]
    used = plain(lengths) > 0
    before = used[None, :] & (plain(begins)[None, :] <= plain(t)[:, None])
    step = xp.sum(xp.astype(before, xp.int32), axis=1) - 1
    step = xp.where(step < 0, 0 * step, step)

    def at(x: Array, shift: int = 0) -> Array:
        return xp.take(x, step + shift, axis=0)  # type: ignore[no-any-return]

    shape = (t.shape[0], *(1,) * (states.ndim - 1))
    h = xp.reshape(at(lengths), shape)
    s = (xp.reshape(t, shape) - xp.reshape(at(begins), shape)) / nonzero_or_one(h)
    # a time after the end of an incomplete mesh gets its last state
    s = xp.where(plain(s) > 1.5, xp.astype(plain(h) > 0, s.dtype), s)
    y, z, k, m = at(states), at(states, 1), at(slopes), at(slopes, 1)
    rest = 1.0 - s
    chord = z - y
    state: Array = y + s * chord + s * rest * (rest * (h * k - chord) - s * (h * m - chord))
    if bulges is None:
        return state
    flat = s * rest
    return state + 16.0 * flat * flat * at(bulges)  # type: ignore[no-any-return]
