"""Steps of Newton's method by a sparse matrix whose pattern lacks an entry."""

from __future__ import annotations

from dil._base.arrays import array_namespace, full
from dil._base.operator import shifted
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array
from dil.linear._solver import LinearSolver
from dil.linear._sparse_direct import SparseDirect
from dil.solvers._linearised import linearised
from dil.solvers._start import Start


def refused(step: Array, solution: Solution, solver: LinearSolver | None) -> Array:
    """Return the step, or NaN where the pattern of the solver is wrong: a problem ends there.

    A step of steepest descent would hide it.
    """
    if not isinstance(solver, SparseDirect):
        return step
    assert solution.status is not None
    wrong = (solution.status == int(Status.WRONG_PATTERN))[..., None]
    return array_namespace(step).where(wrong, full(step, float("nan")), step)  # type: ignore[no-any-return]


def is_wrong_pattern(
    started: Start, u: Array, broken: Array, solver: LinearSolver | None, damping: float
) -> Array | None:
    """Return which of the broken problems have a J at u that is outside of the solver's pattern, (*batch, 1).

    None if the solver has no pattern.
    """
    if not isinstance(solver, SparseDirect):
        return None

    def look(_: Array) -> Array:
        F, J = linearised(started, u)
        status = solver(shifted(J, damping), F).status
        assert status is not None
        return broken & (status == int(Status.WRONG_PATTERN))[..., None]

    found: Array = started.problem.backend.loops.run_if(array_namespace(u).any(broken), look, broken & ~broken)
    return found
