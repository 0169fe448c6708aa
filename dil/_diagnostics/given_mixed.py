"""Whether F changes along its arguments as the products with dF/dargs that the user gives say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from dil._base.arrays import array_namespace, eps, full, is_sparse, max_abs, size
from dil._base.operator import Operator
from dil._base.scale import nonzero_scale
from dil._base.typing import Array, Arrays
from dil._diagnostics.newton_comparison import Point
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality, Problem
from dil._problem.score import Derivatives

LEAST = 0.01
"""The share of a wrong part that is told, as of a wrong J."""
CLOSER = 8.0
"""The ratio of the two distances."""
NOISE = 4.0
"""What is told is so many times larger than the difference of the slopes at the two distances."""
ROUNDING = 64.0
"""What is told is so many times larger than the rounding of the terms of F."""


class Slopes(NamedTuple):
    """The change of F, (*batch, n), along t of an argument, by central differences over t and over t / CLOSER."""

    t: Array
    far: Array
    close: Array
    rounding: Array
    """The error of `close` by the rounding of F, of the same shape."""


def gives_mixed(problem: Problem) -> bool:
    """Return whether the user gives w^T dF/dargs."""
    given = problem.condition.derivatives
    return given is not None and given.mixed is not None


def gives_mixed_jvp(problem: Problem, *, beside_mixed: bool) -> bool:
    """Return whether the user gives dF/dargs t: that of a score is the transpose of `mixed`.

    If not `beside_mixed`, only where the transpose is neither given nor taken by differences.
    """
    given = problem.condition.derivatives
    if given is None or isinstance(given, Derivatives):
        return beside_mixed and gives_mixed(problem)
    alone = given.mixed is None and not given.finite_differences
    return given.mixed_jvp is not None and (beside_mixed or alone)


def pullback_is_wrong(F: Optimality, J: Operator, here: Point, pull: Callable[..., Arrays] | None = None) -> Array:
    """Return whether w^T dF/dtheta is not the change of w^T F with a wanted argument theta, shape ().

    w is random in units of the solution g of the linear system. theta moves along a random direction in its own units,
    by eps ** (1/3), and F must change linearly on the way. 16 bits do not resolve it, and sparse arguments are not
    looked at. `pull`: the pullback of F at the point, if it is at hand.
    """
    xp, problem, found = array_namespace(here.u), F.problem, full(here.u, 0.0, shape=()) > 0
    pull = problem.backend.vjp(F, here.u, *here.floats)[1] if pull is None else pull
    w = nonzero_scale(xp.abs(here.g)) * standard_normal(problem.backend, here.u, 1, 5)[0, ...]
    for i in _resolved(here):
        t, far, close, rounding = _slopes(F, J, here, i)
        terms = xp.astype(pull((w,), (i,))[0] * t, w.dtype)
        said, seen = xp.sum(terms), xp.sum(w * far)
        cancelled = eps(xp, w.dtype) ** 0.5 * (xp.sum(xp.abs(terms)) + xp.sum(xp.abs(w * far)))
        error = _error(*(xp.sum(xp.abs(w * x)) for x in (far - close, far, rounding)))
        least = xp.maximum(LEAST * xp.maximum(xp.abs(said), xp.abs(seen)), cancelled + error)
        found = found | (xp.abs(said - seen) > least)
    return found


def pushforward_is_wrong(F: Optimality, J: Operator, here: Point) -> Array:
    """Return whether dF/dtheta t is not the change of F with a wanted argument theta, shape batch."""
    xp, found = array_namespace(here.u), full(here.u, 0.0, shape=here.u.shape[:-1]) > 0
    for i in _resolved(here):
        t, far, close, rounding = _slopes(F, J, here, i)
        along = [t if k == i else None for k in range(1, 1 + len(here.floats))]
        _, (said,) = jvp_from_vjp(F.problem.backend, F, (here.u, *here.floats), (None, *along))
        error = _error(max_abs(far - close), max_abs(far), max_abs(rounding))
        least = xp.maximum(LEAST * xp.maximum(max_abs(said), max_abs(far)), error)
        found = found | (max_abs(said - far) > least)
    return found


def _resolved(here: Point) -> list[int]:
    """Return the places of the wanted arguments that are dense, have entries, and have more than 16 bits."""
    dense = [(i, here.floats[i - 1]) for i in here.wanted if not is_sparse(here.floats[i - 1])]
    return [i for i, x in dense if size(x.shape) > 0 and eps(array_namespace(x), x.dtype) <= 1e-4]


def _error(apart: Array, slope: Array, rounding: Array) -> Array:
    """Return the error of a slope; infinity where F does not change linearly between the distances."""
    is_linear = apart <= slope / CLOSER + rounding
    return array_namespace(apart).where(is_linear, NOISE * apart + rounding, full(apart, math.inf))  # type: ignore[no-any-return]


def _slopes(F: Optimality, J: Operator, here: Point, place: int) -> Slopes:
    """Return how F changes along a random direction of the argument at a place."""
    x, backend, u = here.floats[place - 1], F.problem.backend, here.u
    xp = array_namespace(x)
    units = xp.reshape(nonzero_scale(xp.reshape(xp.abs(x), (-1,))), x.shape)
    t = eps(xp, x.dtype) ** (1 / 3) * units * standard_normal(backend, x, 1, place)[0, ...]

    def half_change(share: float) -> Array:
        before, after = here.floats[: place - 1], here.floats[place:]
        right, left = (F(u, *before, x + s * t, *after)[0] for s in (share, -share))
        return (right - left) / (2 * share)

    # the terms of F are as large as J u
    terms = array_namespace(u).abs(J(u * standard_normal(backend, u, 1, 7)[0, ...]))
    rounding = ROUNDING * CLOSER * float(eps(array_namespace(u), u.dtype)) * terms
    return Slopes(t, half_change(1.0), half_change(1 / CLOSER), rounding)
