"""Check that a point is stationary, with the products that a backward pass computes anyway."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, dot, eps, full, inner, nonzero_max_abs, norm, select
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._diagnostics.failure_policy import without_approximate
from dil._problem.jacobian import operator
from dil._problem.problem import Optimality

SAFE = 1e-30
"""Inner products between this and its inverse had no under- or overflow, in float32 or wider."""


def check_stationarity(
    status: Array | None, Fu: Array, u: Array, b: Array, g: Array, number: Callable[[Array], Any]
) -> Array:
    """Mark the problems of a backward solve whose point u is not a solution as NOT_STATIONARY.

    The step to the solution is about ||F|| divided by the curvature of J along g. Two estimates of the curvature cost
    nothing: <g, b> / <g, g>, and ||b|| / ||g|| / sqrt(n). The second one does not vanish for a J that rotates vectors,
    or at a saddle. The larger one counts. The point is stationary if the step is within eps ** (1/4) (1 + ||u||):
    1.2e-4 in float64, 1.9e-2 in float32. The error of the gradient is of first order in the same step.
    """
    xp = array_namespace(u)
    FF, gg, gb = (number(inner(a, c)) for a, c in ((Fu, Fu), (g, g), (g, b)))
    tolerance = eps(xp, u.dtype) ** 0.25
    safe = all(isinstance(x, float) and SAFE < abs(x) < 1 / SAFE for x in (gg, gb)) and FF < 1 / SAFE
    near = safe and FF**0.5 * gg <= abs(gb) * tolerance
    if not near:
        step, bound = _scaled(Fu, u, b, g)
        near = step <= bound * tolerance  # False for NaN
    if status is None:
        status = xp.zeros(u.shape[:-1], dtype=xp.int32, device=device(u))
    if near is True:
        return status
    failure = select(
        abs(step) < math.inf, full(status, int(Status.NOT_STATIONARY)), full(status, int(Status.NON_FINITE))
    )
    marked: Array = xp.where((without_approximate(status) != int(Status.CONVERGED)) | near, status, failure)
    return marked


def check_curvature(status: Array, solution: Solution) -> Array:
    """Return the statuses, with NOT_MINIMUM where the system was solved but its Hessian is not positive definite."""
    indefinite = (solution.extra or {}).get("indefinite")
    if indefinite is None:
        return status
    marked: Array = array_namespace(status).where(
        indefinite & (status == int(Status.CONVERGED)), full(status, int(Status.NOT_MINIMUM)), status
    )
    return marked


def _scaled(Fu: Array, u: Array, b: Array, g: Array) -> tuple[Array, Array]:
    """Return the two sides of the comparison, with cotangents scaled to one so that their squares do not overflow.

    A g of zero beside a tiny b has underflowed. It gives no gradient that could be wrong, so its step counts as zero.
    """
    xp, top_b, top_g = array_namespace(u), nonzero_max_abs(b), nonzero_max_abs(g)
    b, g = b / top_b, g / top_g
    gg, along, turned = inner(g, g), abs(inner(g, b)), xp.sqrt(inner(g, g) * inner(b, b) / max(u.shape[-1], 1))
    step = norm(Fu)[..., 0] * xp.where(gg == 0, full(gg, 0.0), (top_g / top_b)[..., 0]) * gg
    return step, (1 + norm(u)[..., 0]) * xp.where(along < turned, turned, along)


class StationarityCheck(NamedTuple):
    """The check of a point for each problem, shape batch."""

    status: Array
    stationarity: Array
    """The length of the step to the solution, divided by 1 + ||u||."""


def stationarity_at(F: Optimality, u: Array, floats: Arrays) -> StationarityCheck:
    """Check a point where no linear system is solved, by one product with J along F.

    The step to the solution is about ||F|| divided by the curvature along F, |<F, J F>| / <F, F>. The tolerance is that
    of `check_stationarity`. A point with F = 0 is a solution. A point with F != 0 and no curvature along F is not.
    """
    xp = array_namespace(u)
    (Fu,), pull = F.problem.backend.vjp(lambda w: F(w, *floats), u)
    f = Fu / nonzero_max_abs(Fu)
    bend = abs(dot(f, operator(F.problem, lambda p: pull((p,))[0], u)(f)))
    zero = xp.all(Fu == 0, axis=-1, keepdims=True)
    length = norm(Fu) * dot(f, f) / xp.where(bend == 0, full(bend, 1.0), bend)
    length = xp.where(zero, full(length, 0.0), xp.where(bend == 0, full(length, math.inf), length))
    far = (length / (1.0 + norm(u)))[..., 0]
    status = full(far, int(Status.CONVERGED), dtype=xp.int32)
    finite = xp.all(xp.isfinite(Fu), axis=-1)
    failure = xp.where(finite, full(status, int(Status.NOT_STATIONARY)), full(status, int(Status.NON_FINITE)))
    return StationarityCheck(xp.where(far <= eps(xp, u.dtype) ** 0.25, status, failure), far)
