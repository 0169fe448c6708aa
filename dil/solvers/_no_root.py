"""Tell that an equation has no root near the point where a solver stopped, or that the point is none."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, max_abs
from dil._base.typing import Array
from dil._frameworks.random_vectors import standard_normal
from dil._problem.jacobian import operator
from dil._problem.terms import change_with_arguments
from dil.solvers._start import Start

PROBES, FEW = 8, 2
"""The numbers of random vectors that estimate |J| |w| and |J^T| |F|, entry by entry: a close look and a quick one."""
MARGIN = 4.0
"""An equation is out of reach if it exceeds the estimate of its reach so many times. The estimate is at least half."""
BALANCE = 1e-2
"""J^T F is zero if it is so small beside its terms, each entry times the way of its unknown."""
LEFT = 1e-2
"""The largest share of its terms that an equation may be away from zero at a root."""


class Reach(NamedTuple):
    """The equations at a point, and how far they can move; vectors (*batch, n)."""

    F: Array
    reach: Array
    """How much each equation changes where each unknown moves by its size, or by its way from the start."""
    slope: Array
    """|J^T F|, each entry times the way of its unknown: how fast ||F||^2 / 2 changes along each unknown."""
    terms: Array
    """The size of the terms of the slope."""


def has_no_root(started: Start, u: Array, stopped: Array) -> Array:
    """Return where a solver has stopped at a minimum of ||F|| that is not zero; (*batch, 1), like `stopped`.

    One of two holds there. An equation is out of reach: its linear model does not come to zero, although each unknown
    moves by its size or by its way from the start. Or the equations contradict each other: J^T F is zero beside its
    terms. No unit of an unknown or of an equation matters. A point that never left its start is not judged.
    """
    xp = array_namespace(u)

    def judged(stopped: Array) -> Array:
        at = _reach(started, u, PROBES)
        moved = xp.any(u != started.u, axis=-1, keepdims=True)
        beyond = xp.any(xp.abs(at.F) > MARGIN * at.reach, axis=-1, keepdims=True)
        balanced = max_abs(at.slope)[..., None] <= BALANCE * max_abs(at.terms)[..., None]
        return stopped & moved & (beyond | balanced)  # type: ignore[no-any-return]

    return started.problem.backend.loops.run_if(xp.any(stopped), judged, stopped)  # type: ignore[no-any-return]


def is_no_root(started: Start, u: Array, solved: Array) -> Array:
    """Return where an entry of F is more than 1 percent of its terms away from zero; (*batch, 1), like `solved`.

    Its terms are its reach, and its change with the arguments. It also judges a minimum, where F is the gradient.
    """
    xp = array_namespace(u)

    def judged(solved: Array) -> Array:
        at = _reach(started, u, FEW)
        F, floats = started.problem.optimality(started.arrays)
        terms = at.reach + xp.abs(change_with_arguments(F, u, floats))
        return solved & xp.any(xp.abs(at.F) > LEFT * terms, axis=-1, keepdims=True)  # type: ignore[no-any-return]

    return started.problem.backend.loops.run_if(xp.any(solved), judged, solved)  # type: ignore[no-any-return]


def _reach(started: Start, u: Array, probes: int) -> Reach:
    problem, start, arrays = started
    backend, xp = problem.backend, array_namespace(u)
    (F,), pull = backend.vjp(lambda w: (problem.residual(w, *arrays),), u)
    J = operator(problem, lambda p: pull((p,))[0], u)
    drawn = standard_normal(backend, u, probes, 0)
    way = xp.maximum(xp.abs(u), xp.abs(u - start))
    reach, terms = xp.abs(J(way * drawn[0, ...])), xp.abs(J.T(F * drawn[0, ...]))
    for k in range(1, probes):
        reach = xp.maximum(reach, xp.abs(J(way * drawn[k, ...])))
        terms = xp.maximum(terms, xp.abs(J.T(F * drawn[k, ...])))
    return Reach(F, reach, xp.abs(J.T(F)) * way, terms * way)
