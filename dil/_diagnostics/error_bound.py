"""A bound on the error of a gradient, from the Newton step at y and the curvature there."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, full, inner, max_abs, nonzero_or_one, norm
from dil._base.operator import Operator
from dil._base.scale import nonzero_scale
from dil._base.status import Status
from dil._base.typing import Array
from dil._diagnostics.newton_comparison import Point, length, sensitivities
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil._problem.jacobian import operator
from dil._problem.problem import Optimality, Problem
from dil.linear._auto import Auto
from dil.linear._extremes import Extremes, extremes

SAFETY = 2.0
"""The factor on the first-order estimate of the error."""
LANCZOS = 50
"""The number of products spent on the extreme eigenvalues."""


class ErrorBound(NamedTuple):
    """The findings about one backward solve, shape batch; see `dil.Entry`."""

    stationarity: Array
    lowest: Array
    highest: Array
    condition: Array
    asymmetry: Array
    bound: Array


def error_bound(F: Optimality, A: Operator, b: Array, Fu: Array, here: Point) -> ErrorBound:
    """Check the solve of A g = b, where A is J or J^T at u, by tighter solves with the same products.

    The bound is for the pullback, -g^T F_args with J^T g = b. One Newton step, u' = u - J^-1 F(u), leaves an error of
    second order. There g' is solved to the default tolerance and refined once, which gives the gradient G'. Then

        bound = 2 d / (1 - 2 c) / (1 - 2 c d) + s + r,   d = ||G - G'|| / ||G'||,   c = ||F(u')|| / ||F(u)||

    with s = ||G''|| / ||G'||, the share of the refinement in G', and r = (16 + condition) eps, the rounding of both
    gradients. G' may differ from the exact gradient by c ||G - G'||; the factor 2 is for safety. The first denominator
    corrects the numerator of the relative error, the second its denominator. The bound is infinite where one of them is
    not positive: the step does not contract, or the gradient changes so much that its exact size is not known. A step
    within rounding, 4 r |u| in each entry, need not contract, so c = 0 there.

    The norms are exact for one problem. Problems of a batch may share arguments, so their norms are taken along 16
    random directions. Measured by benchmarks/trust.py.
    """
    problem, backend = F.problem, F.problem.backend
    loop, exact = backend.loops.while_loop, Auto()
    J = A.T if A.transposed else A
    step = exact(J, Fu, loop=loop)
    scale = nonzero_scale(here.scale)
    stationarity = max_abs(step.value / scale)
    ends = _spectrum(A, b, problem)
    condition, bound = _ratio(*ends), full(stationarity, float("nan"))
    if A.transposed:
        bound = _bound(F, b, Fu, here, _finite(step.value), _rounding(condition, ends, b, here.g))
        assert step.status is not None
        bound = _or_else(step.status == int(Status.CONVERGED), bound, float("inf"))
    return ErrorBound(stationarity, *ends, condition, _asymmetry(A, b, backend), bound)


def _spectrum(A: Operator, b: Array, problem: Problem) -> Extremes:
    """Return the extreme eigenvalues of A if it is symmetric, else its extreme singular values."""
    xp, loop = array_namespace(b), problem.backend.loops.while_loop
    start = xp.where(
        norm(b) > 0, b, standard_normal(problem.backend, b, 1, 0)[0, ...]
    )  # a cotangent of zero spans nothing
    if problem.symmetric:
        return extremes(A, start, steps=LANCZOS, loop=loop)
    scale = nonzero_or_one(norm(A(start / nonzero_or_one(norm(start)))))  # or the squares would under- or overflow
    scale = xp.where(xp.isfinite(scale), scale, full(scale, 1.0))
    found = extremes(lambda p: A.T(A(p) / scale) / scale, start, steps=LANCZOS, loop=loop)
    return Extremes(*(scale[..., 0] * xp.sqrt(xp.abs(end)) for end in found))


def _rounding(condition: Array, ends: Extremes, b: Array, g: Array) -> Array:
    """Return (16 + condition) eps, with ||A|| ||g|| / ||b|| in the place of an unknown condition number."""
    xp = array_namespace(b)
    low, high = xp.abs(ends.lowest), xp.abs(ends.highest)
    met = xp.where(low < high, high, low) * norm(g)[..., 0] / nonzero_or_one(norm(b)[..., 0])
    known = xp.where(xp.isfinite(condition), condition, met)
    return eps(xp, b.dtype) * (16.0 + _finite(known))


def _bound(F: Optimality, b: Array, Fu: Array, here: Point, step: Array, rounding: Array) -> Array:
    xp, loop, exact = array_namespace(b), F.problem.backend.loops.while_loop, Auto()
    u = here.u - step
    (Fu1,), pull = F.problem.backend.vjp(F, u, *here.floats)
    A = operator(F.problem, pull, u, F.arrays(here.floats)).T
    found = exact(A, b, loop=loop)
    assert found.status is not None
    g = found.value
    more = _finite(exact(A, b - A(g), loop=loop).value)
    there = here._replace(u=u, g=g + more)
    told, right = sensitivities(F, F.problem, here), sensitivities(F, F.problem, there)
    slack = sensitivities(F, F.problem, there._replace(g=more))
    rate = norm(Fu1)[..., 0] / nonzero_or_one(norm(Fu)[..., 0])
    settled = max_abs(step / nonzero_scale(here.scale)) <= 4.0 * rounding
    rate = xp.where(settled, full(rate, 0.0), rate)
    scale = nonzero_or_one(length(right))
    change = length(told - right) / scale
    first, second = 1.0 - SAFETY * rate, 1.0 - SAFETY * rate * change
    known = (first > 0) & (second > 0) & (found.status == int(Status.CONVERGED))
    bound = SAFETY * change / _or_else(known, first * second, 1.0) + length(slack) / scale + rounding
    return _or_else(known, bound, float("inf"))


def _asymmetry(A: Operator, b: Array, backend: Backend) -> Array:
    p, q = (x[0, ...] for x in (standard_normal(backend, b, 1, 0), standard_normal(backend, b, 1, 1)))
    Ap, Aq = A(p), A(q)
    terms = norm(p) * norm(Aq) + norm(q) * norm(Ap)
    return abs(inner(p, Aq) - inner(q, Ap)) / nonzero_or_one(terms[..., 0])


def _ratio(lowest: Array, highest: Array) -> Array:
    """Return the ratio of the magnitudes; infinite where the eigenvalues have both signs, so that it is not known."""
    xp = array_namespace(lowest)
    low, high = xp.abs(lowest), xp.abs(highest)
    small, large = xp.where(low < high, low, high), xp.where(low < high, high, low)
    one = (lowest > 0) & (highest > 0) | (lowest < 0) & (highest < 0)
    return _or_else(one | xp.isnan(lowest), large / nonzero_or_one(small), float("inf"))


def _finite(x: Array) -> Array:
    xp = array_namespace(x)
    return xp.where(xp.isfinite(x), x, full(x, 0.0))  # type: ignore[no-any-return]


def _or_else(condition: Array, x: Array, other: float) -> Array:
    """Return x where the condition holds, else a number."""
    return array_namespace(x).where(condition, x, full(x, other))  # type: ignore[no-any-return]
