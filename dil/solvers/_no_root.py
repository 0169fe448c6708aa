"""Tell that an equation has no root near the point where a solver stopped, or that the point is none."""

from __future__ import annotations

from typing import NamedTuple

from dil._base.arrays import array_namespace, max_abs
from dil._base.typing import Array
from dil._frameworks.random_vectors import standard_normal
from dil._problem.jacobian import operator
from dil._problem.terms import change_with_arguments
from dil.solvers._start import Start

PROBES = 8
"""The number of random vectors that estimate |J| |w| and |J^T| |F|, entry by entry."""
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


class Verdict(NamedTuple):
    """(*batch, 1)."""

    far: Array
    """The solved problems whose point is no solution."""
    rootless: Array
    """The problems among these, and among the others, that stopped at a minimum of ||F|| that is not zero."""


def judge(started: Start, u: Array, solved: Array, stopped: Array) -> Verdict:
    """Judge the problems that seem solved, and those that stopped without a solution. No unit matters.

    A point is no solution if an entry of F is more than 1 percent of its terms away from zero. Its terms are its reach,
    and its change with the arguments. F may be the gradient of a score.

    There is no root near a point if one of two holds. An equation is out of reach: its linear model does not come to
    zero, although each unknown moves by its size or by its way from the start. Or the equations contradict each other:
    J^T F is zero beside its terms. A point that never left its start is not judged.
    """
    xp = array_namespace(u)

    def judged(now: Verdict) -> Verdict:
        at, (F, floats) = _reach(started, u), started.problem.optimality(started.arrays)
        terms = at.reach + xp.abs(change_with_arguments(F, u, floats))
        far = solved & xp.any(xp.abs(at.F) > LEFT * terms, axis=-1, keepdims=True)
        moved = xp.any(u != started.u, axis=-1, keepdims=True)
        beyond = xp.any(xp.abs(at.F) > MARGIN * at.reach, axis=-1, keepdims=True)
        balanced = max_abs(at.slope)[..., None] <= BALANCE * max_abs(at.terms)[..., None]
        return Verdict(far, (stopped | far) & moved & (beyond | balanced))

    none = solved & ~solved
    found: Verdict = started.problem.backend.loops.run_if(xp.any(solved | stopped), judged, Verdict(none, none))
    return found


def _reach(started: Start, u: Array) -> Reach:
    problem, start, arrays = started
    backend, xp = problem.backend, array_namespace(u)
    (F,), pull = backend.vjp(lambda w: (problem.residual(w, *arrays),), u)
    J = operator(problem, lambda p: pull((p,))[0], u)
    drawn = standard_normal(backend, u, PROBES, 0)
    way = xp.maximum(xp.abs(u), xp.abs(u - start))
    reach = xp.max(xp.abs(backend.loops.map_rows(lambda p: J(way * p), drawn)), axis=0)
    terms = xp.max(xp.abs(backend.loops.map_rows(lambda p: J.T(F * p), drawn)), axis=0)
    return Reach(F, reach, xp.abs(J.T(F)) * way, terms * way)
