"""Kepler's equation E - e sin E = M as an argmin layer: the first example of Look et al. 2020 (section 1, Figure 1).

M   mean anomaly, radians, any real number
e   eccentricity, 0 <= e < 1
E   eccentric anomaly, radians: the argmin over u of 1/2 (u - e sin u - M)^2

All functions work elementwise, on arrays of all backends.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import AnyArray, Array
from dil._frameworks.registry import common_owner
from dil._layers.argmin import argmin

__all__ = ["dE_dM", "dE_de", "eccentric_anomaly", "residual", "score", "solver"]

MAX_ITER = 100


def residual(E: AnyArray, M: AnyArray | float, e: AnyArray | float) -> AnyArray:
    """Return E - e sin E - M in radians, which is zero at the eccentric anomaly. The shapes broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from dil import kepler
    >>> float(kepler.residual(np.asarray(2.0), 1.5, 0.0))
    0.5
    """
    r: Array = E - e * array_namespace(E).sin(E) - M
    return r


def score(E: AnyArray, M: AnyArray | float, e: AnyArray | float) -> AnyArray:
    """Return 1/2 (E - e sin E - M)^2, one number for each entry of E.

    Parameters
    ----------
    E : array
        The point in radians, shape batch; () for one problem.
    M, e : arrays or floats
        Mean anomaly in radians, and eccentricity. They broadcast to the shape of E.

    Notes
    -----
    The score is half the square in section 1 of Look et al. 2020. Its second derivative in E is
    (1 - e cos E)^2 + (E - e sin E - M) e sin E. It is positive at the solution, and may be negative elsewhere.

    Examples
    --------
    >>> import numpy as np
    >>> from dil import kepler
    >>> float(kepler.score(np.asarray(2.0), 1.0, 0.0))
    0.5
    """
    r = residual(E, M, e)
    return 0.5 * r * r


def eccentric_anomaly(M: AnyArray | float, e: AnyArray | float) -> AnyArray:
    """Return the eccentric anomaly E of E - e sin E = M, differentiable in M and e.

    Parameters
    ----------
    M : array or float
        Mean anomaly in radians, any real number.
    e : array or float
        Eccentricity, 0 <= e < 1. M or e must be an array. They broadcast, and each entry is a separate problem.

    Returns
    -------
    array
        E in radians, in the same turn as M. E is NaN where e is out of range or M is not finite.

    Warns
    -----
    dil.ConvergenceWarning
        If the solve of an entry fails, such as where E is NaN.

    Notes
    -----
    This is the layer `dil.argmin(score, solver)`. `solver` finds E, and the derivatives come from the score.

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
    return argmin(score, solver, batch_ndim=batch_ndim)(M, e)


def solver(fun: Any, init: Any, M: AnyArray | float, e: AnyArray | float) -> Solution:
    """Solve Kepler's equation for each entry by Newton's method on the residual. `fun` and `init` are not used.

    Notes
    -----
    Symmetry reduces M to [0, pi]. On [0, pi] the residual is increasing and convex in E. Newton's method from a start
    at or above the root then decreases to the root, for every 0 <= e < 1, without a safeguard. Four upper bounds of the
    root are M + e, M / (1 - e), pi and (10 M)^(1/3). The last one holds because E - e sin E >= E - sin E >= E^3 / 10 on
    [0, pi]. The start is the least of these bounds. A start at M + e sin M may lie below the root. Newton's method can
    then jump far away if e is near 1 and M near 0 (Charles and Tatum 1998).

    Examples
    --------
    >>> import numpy as np
    >>> from dil import kepler
    >>> round(float(kepler.solver(None, None, np.asarray(1.0), 0.3).value), 10)
    1.2880913132
    """
    xp = array_namespace(M, e)
    M, e = _broadcast(M, e)
    valid = (e >= 0) & (e < 1) & xp.isfinite(M)
    e, M = xp.where(valid, e, full(e, 0.0)), xp.where(valid, M, full(M, 0.0))
    turns = xp.round(M / (2 * math.pi))
    signed = M - 2 * math.pi * turns  # in [-pi, pi]
    m = xp.abs(signed)
    rounding = 4 * eps(xp, m.dtype)

    def step(s: Iterate) -> Iterate:
        r = residual(s.E, m, e)
        active = s.active & (r > rounding * s.E)  # a smaller residual is rounding, and its step is noise / (1 - e)
        E = xp.where(active, s.E - r / (1 - e * xp.cos(s.E)), s.E)
        steps = s.steps + xp.astype(active, s.steps.dtype)
        return Iterate(E, active & (steps < MAX_ITER), steps)

    start = xp.minimum(xp.minimum(m + e, m / (1 - e)), xp.minimum(full(m, math.pi), (10 * m) ** (1 / 3)))
    first = Iterate(start, valid, full(m, 0, dtype=xp.int32))
    last: Iterate = common_owner([m], ["M"], "kepler.solver").loops.while_loop(lambda s: xp.any(s.active), step, first)
    E = 2 * math.pi * turns + xp.where(signed < 0, -last.E, last.E)
    status = xp.where(
        last.steps < MAX_ITER,
        full(last.steps, int(Status.CONVERGED)),
        full(last.steps, int(Status.MAX_ITER)),
    )
    return Solution(xp.where(valid, E, full(E, float("nan"))), status, last.steps)


class Iterate(NamedTuple):
    """The state of Newton's method: E, which problems are active, and the number of their steps."""

    E: Array
    active: Array
    steps: Array


def dE_de(E: AnyArray, e: AnyArray | float) -> AnyArray:
    """Return the closed form dE/de = sin E / (1 - e cos E), in radians, at fixed M. The shapes broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from dil import kepler
    >>> float(kepler.dE_de(np.asarray(0.0), 0.5))
    0.0
    """
    xp = array_namespace(E)
    slope: Array = xp.sin(E) / (1 - e * xp.cos(E))
    return slope


def dE_dM(E: AnyArray, e: AnyArray | float) -> AnyArray:
    """Return the closed form dE/dM = 1 / (1 - e cos E), at fixed e. The shapes broadcast.

    Examples
    --------
    >>> import numpy as np
    >>> from dil import kepler
    >>> float(kepler.dE_dM(np.asarray(0.0), 0.5))
    2.0
    """
    slope: Array = 1 / (1 - e * array_namespace(E).cos(E))
    return slope


def _broadcast(M: Array | float, e: Array | float) -> tuple[Array, Array]:
    """Return M and e as arrays of one shape."""
    like: Any = M if hasattr(M, "dtype") else e
    xp = array_namespace(like)
    both = (x if hasattr(x, "dtype") else full(like, x, shape=()) for x in (M, e))
    first, second = xp.broadcast_arrays(*both)
    return first, second
