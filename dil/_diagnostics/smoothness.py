"""Check that F is a smooth function at a point: no kink there, and the same value at each call."""

from __future__ import annotations

from dil._base.arrays import array_namespace, eps, full, max_abs
from dil._base.operator import Operator
from dil._base.scale import nonzero_scale
from dil._base.status import Status
from dil._base.typing import Array
from dil._diagnostics.newton_comparison import Point
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality


def check_smoothness(status: Array, F: Optimality, J: Operator, Fu: Array, here: Point) -> Array:
    """Return the statuses, with KINK or RANDOM where the implicit function theorem does not hold for F at u.

    The change of F on both sides of u, along a random direction p in units of u, is compared with h J p. At a smooth
    point they differ by O(h) of their size. The distance is h = eps ** (1/3), and a difference above eps ** (1/6) is a
    kink. A second value of F at u shows random numbers. A kink that u is farther away from is not seen.
    """
    xp, u = array_namespace(here.u), here.u
    h = eps(xp, u.dtype) ** (1 / 3)
    step = h * nonzero_scale(here.scale) * standard_normal(F.problem.backend, u, 1, 0)[0, ...]
    (again,), (ahead,), (behind,) = (F(x, *here.floats) for x in (u, u + step, u - step))
    right, left, linear = ahead - again, again - behind, J(step)
    size = xp.maximum(max_abs(right), max_abs(left))
    gap = xp.maximum(max_abs(right - linear), max_abs(left - linear))
    rounding = 64 * eps(xp, u.dtype) * xp.maximum(max_abs(again), max_abs(ahead))
    random = max_abs(again - Fu) > rounding
    kink = gap > xp.maximum(eps(xp, u.dtype) ** (1 / 6) * size, rounding)
    converged = status == int(Status.CONVERGED)
    status = xp.where(converged & kink, full(status, int(Status.KINK)), status)
    return xp.where(converged & random, full(status, int(Status.RANDOM)), status)  # type: ignore[no-any-return]
