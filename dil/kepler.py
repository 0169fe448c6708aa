"""Kepler's equation E - e sin E = M as an argmin layer: the first example of Look et al. 2020 (section 1, Figure 1).

M   mean anomaly, radians, any real number
e   eccentricity, 0 <= e < 1
E   eccentric anomaly, radians: the argmin over u of 1/2 (u - e sin u - M)^2

Every function works elementwise on arrays of every backend.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array
from dil._frameworks.registry import common_owner
from dil._layers.argmin import argmin

__all__ = ["dE_dM", "dE_de", "eccentric_anomaly", "residual", "score", "solver"]

MAX_ITER = 100


def residual(E: Array, M: Array | float, e: Array | float) -> Array:
    """Return E - e sin E - M in radians, zero at the eccentric anomaly; the shapes broadcast."""
    r: Array = E - e * array_namespace(E).sin(E) - M
    return r


def score(E: Array, M: Array | float, e: Array | float) -> Array:
    """Return 1/2 (E - e sin E - M)^2, one number for each entry of E.

    Parameters
    ----------
    E : array
        Where to evaluate, radians: shape batch, () for one problem.
    M, e : arrays or floats
        Mean anomaly in radians and eccentricity; they broadcast to the shape of E.

    Notes
    -----
    Half the square of section 1 in Look et al. 2020. Its Hessian is (1 - e cos E)^2 > 0 at the solution, but away from
    it (1 - e cos E)^2 + (E - e sin E - M) e sin E, which is negative in places.

    Examples
    --------
    >>> import numpy as np
    >>> from dil import kepler
    >>> float(kepler.score(np.asarray(2.0), 1.0, 0.0))
    0.5
    """
    r = residual(E, M, e)
    return 0.5 * r * r


def eccentric_anomaly(M: Array | float, e: Array | float) -> Array:
    """Return the eccentric anomaly E of E - e sin E = M, differentiable in M and e.

    Parameters
    ----------
    M : array or float
        Mean anomaly in radians, any real number.
    e : array or float
        Eccentricity, 0 <= e < 1. One of the two is an array; they broadcast, and each entry is its own problem.

    Returns
    -------
    array
        E in radians, in the same turn as M. Where e is out of range or M is not finite it is NaN, with a
        `dil.ConvergenceWarning`.

    Notes
    -----
    `dil.argmin(score, solver)`: `solver` finds E by whatever means, the derivatives come from the score.

    Examples
    --------
    >>> import numpy as np, dil
    >>> from dil import kepler
    >>> E, pull = dil.vjp(kepler.eccentric_anomaly, np.asarray(1.0), np.asarray(0.3))
    >>> dE_dM, dE_de = pull(np.asarray(1.0))
    >>> print(f"{E:.10f} {dE_de:.10f} {dE_dM:.10f}")
    1.2880913132 1.0480083050 1.0913293012
    """
    batch_ndim = max(getattr(M, "ndim", 0), getattr(e, "ndim", 0))
    return argmin(score, solver, batch_ndim=batch_ndim)(M, e)  # type: ignore[no-any-return]


def solver(fun: Any, init: Any, M: Array | float, e: Array | float) -> Solution:
    """Solve Kepler's equation by Newton's method on the residual, each entry by itself; it needs no start.

    Notes
    -----
    With M reduced to [0, pi] by symmetry the residual is increasing and convex in E on [0, pi]. Started at or above the
    root, Newton's method then decreases to it, for every 0 <= e < 1, with no safeguard. Bounds from above are M + e,
    M / (1 - e), pi, and (10 M)^(1/3), since E - e sin E >= E - sin E >= E^3 / 10 there. Started from M + e sin M, which
    may lie below the root, it can be thrown far off where e is near 1 and M near 0 (Charles and Tatum 1998).
    """
    xp = array_namespace(M, e)
    M, e = _broadcast(M, e)
    valid = (e >= 0) & (e < 1) & xp.isfinite(M)
    e, inside = xp.where(valid, e, full(e, 0.0)), xp.where(valid, M, full(M, 0.0))
    turns = xp.round(inside / (2 * math.pi))
    folded = inside - 2 * math.pi * turns
    m = xp.abs(folded)
    rounding = 4 * eps(xp, m.dtype)

    def step(s: Iterate) -> Iterate:
        r = residual(s.E, m, e)
        going = s.going & (r > rounding * s.E)  # a step of a residual that is rounding would be noise over 1 - e
        E = xp.where(going, s.E - r / (1 - e * xp.cos(s.E)), s.E)
        steps = s.steps + xp.astype(going, s.steps.dtype)
        return Iterate(E, going & (steps < MAX_ITER), steps)

    above = xp.minimum(xp.minimum(m + e, m / (1 - e)), xp.minimum(full(m, math.pi), (10 * m) ** (1 / 3)))
    first = Iterate(above, valid, full(m, 0, dtype=xp.int32))
    last: Iterate = common_owner([m], ["M"], "kepler.solver").loops.while_loop(lambda s: xp.any(s.going), step, first)
    E = 2 * math.pi * turns + xp.where(folded < 0, -last.E, last.E)
    status = xp.where(
        last.steps < MAX_ITER,
        full(last.steps, int(Status.CONVERGED)),
        full(last.steps, int(Status.MAX_ITER)),
    )
    return Solution(xp.where(valid, E, full(E, float("nan"))), status, last.steps)


class Iterate(NamedTuple):
    """One Newton step for each problem."""

    E: Array
    going: Array
    steps: Array


def dE_de(E: Array, e: Array | float) -> Array:
    """Return the closed form dE/de = sin E / (1 - e cos E), radians, M held fixed."""
    xp = array_namespace(E)
    slope: Array = xp.sin(E) / (1 - e * xp.cos(E))
    return slope


def dE_dM(E: Array, e: Array | float) -> Array:
    """Return the closed form dE/dM = 1 / (1 - e cos E), e held fixed."""
    slope: Array = 1 / (1 - e * array_namespace(E).cos(E))
    return slope


def _broadcast(M: Array | float, e: Array | float) -> tuple[Array, Array]:
    """Return both as arrays of one shape."""
    like: Any = M if hasattr(M, "dtype") else e
    xp = array_namespace(like)
    both = (x if hasattr(x, "dtype") else full(like, x, shape=()) for x in (M, e))
    first, second = xp.broadcast_arrays(*both)
    return first, second
