"""Check the point of the envelope theorem: a minimum, where the gradient of the least value is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, dot, eps, full, nonzero_max_abs, nonzero_or_one, norm
from dil._base.operator import Operator
from dil._base.scale import nonzero_scale, scale_of
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._diagnostics.curvature import PRODUCTS, curvature
from dil._diagnostics.newton_comparison import ACCEPTED_CHANGE, Point, relative_change
from dil._diagnostics.stationarity import least_step
from dil._frameworks.random_vectors import standard_normal
from dil._problem.jacobian import operator
from dil._problem.problem import Optimality
from dil._problem.terms import within_rounding_of_terms
from dil.linear._cg import CG


class EnvelopeCheck(NamedTuple):
    """The check of a point for each problem, shape batch, and what it computed."""

    status: Array
    stationarity: Array
    """A bound of the step to the solution, relative to u; an estimate with more than 8 unknowns."""
    H: Operator
    """The Hessian of the score in u."""
    Fu: Array
    here: Point


def check_envelope(F: Optimality, score: Callable[..., Arrays], u: Array, floats: Arrays) -> EnvelopeCheck:
    """Check that u is a minimum of `score(u, *floats)`, shape batch, whose derivative in u is F.

    At most 8 products with the Hessian estimate its least eigenvalue in units of u: up to 8 unknowns exactly. It must
    not be negative. ||F|| over it bounds the step to the minimum. If that is above rounding, a Newton step is made by
    at most 8 steps of conjugate gradients, and the derivative of the score in its arguments must change by at most 1
    percent. Entries of u on a kink of the score, between a falling and a rising side, are at their minimum: see
    `off_kinks`. If the Hessian is singular, the step along F counts. Nothing depends on the units of u, of the score
    and of the arguments. With more than 8 unknowns an error along a soft direction can hide behind one along a stiff
    direction.
    """
    backend, xp = F.problem.backend, array_namespace(u)
    (Fu,), pull = backend.vjp(lambda w: F(w, *floats), u)
    H = operator(F.problem, pull, u, floats)
    scale = nonzero_scale(scale_of(u, None))
    scaled = Operator(lambda p: scale * H(scale * p), symmetric=True)
    found, small = curvature(scaled, u, backend), least_step(u)
    far = _longest_step(scale * Fu, found.least)
    ok = xp.zeros(u.shape[:-1], dtype=xp.int32, device=device(u))

    def values(u: Array, *floats: Array) -> Arrays:
        return (score(u, *floats)[0][..., None],)

    def measured(status: Array) -> Array:
        left = off_kinks(F, H, Fu, u, floats, scale)
        step = scale * CG(max_iter=PRODUCTS)(scaled, scale * left, loop=backend.loops.while_loop).value
        ones = full(u[..., :1], 1.0)
        here = Point(u, ones, floats, ones)
        change = relative_change(values, F.problem, here, here._replace(u=u - step))
        failure = full(status, int(Status.NOT_STATIONARY))
        good = (change <= ACCEPTED_CHANGE) | (_longest_step(scale * left, found.least) <= small)
        # along a flat direction rounding makes a long step, so only the direction of F counts there
        along = found.is_singular & (_step_along(scaled, scale * left) <= eps(xp, u.dtype) ** 0.25)
        good = good | along | within_rounding_of_terms(F, H, Fu, u, floats)
        return xp.where(suspect & ~good, failure, status)  # type: ignore[no-any-return]

    finite = xp.all(xp.isfinite(Fu), axis=-1)
    status = xp.where(finite, ok, full(ok, int(Status.NON_FINITE)))
    suspect = finite & ~(far <= small)
    status = backend.loops.run_if(xp.any(suspect), measured, status)
    maximum = (status == int(Status.CONVERGED)) & found.negative
    status = xp.where(maximum, full(status, int(Status.NOT_MINIMUM)), status)
    return EnvelopeCheck(status, far, H, Fu, Point(u, full(u, 1.0), floats, scale))


def _longest_step(F: Array, least: Array) -> Array:
    """Return ||F|| over the least eigenvalue, as a root mean square; infinite if that is not positive; shape batch."""
    xp, length = array_namespace(F), norm(F)[..., 0] / max(F.shape[-1], 1) ** 0.5
    bounded = xp.where(least > 0, length / nonzero_or_one(least), full(length, float("inf")))
    return xp.where(length == 0, length, bounded)  # type: ignore[no-any-return]


def _step_along(H: Operator, F: Array) -> Array:
    """Return the length of the step that minimises along F, as a root mean square, shape batch."""
    f = F / nonzero_max_abs(F)
    return _longest_step(F, (abs(dot(f, H(f))) / nonzero_or_one(dot(f, f)))[..., 0])


def off_kinks(F: Optimality, H: Operator, Fu: Array, u: Array, floats: Arrays, scale: Array) -> Array:
    """Return F(u), with zero for the entries that jump from negative to positive at u, in the direction of u.

    F is compared at eps ** (1/2) of u on both sides. A jump is a change that H explains by less than a half.
    """
    xp = array_namespace(u)
    step = eps(xp, u.dtype) ** 0.5 * scale * standard_normal(F.problem.backend, u, 1, 0)[0, ...]
    (ahead,), (behind,) = F(u + step, *floats), F(u - step, *floats)
    between = (ahead * step > 0) & (behind * step < 0)
    jump = xp.abs(ahead - behind) > 4.0 * xp.abs(H(step))
    return xp.where(between & jump, full(Fu, 0.0), Fu)  # type: ignore[no-any-return]
