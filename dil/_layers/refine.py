"""Newton steps from a rough solution, so that a rough solver still gives an accurate gradient."""

from __future__ import annotations

from dataclasses import replace

from dil._base.arrays import array_namespace, eps, full, nonzero_max_abs, norm
from dil._base.quasi_newton import Pairs
from dil._base.status import Status
from dil._base.typing import Array, Arrays
from dil._diagnostics.curvature import has_negative_curvature
from dil._diagnostics.failure_policy import without_approximate
from dil._problem.jacobian import operator
from dil._problem.problem import Problem
from dil._problem.terms import within_rounding_of_terms
from dil.linear._solver import LinearSolver


def refine(
    problem: Problem,
    linear_solver: LinearSolver,
    u: Array,
    arrays: Arrays,
    status: Array,
    steps: int,
    pairs: Pairs | None,
) -> tuple[Array, Array]:
    """Take full Newton steps u - J^-1 F(u). Return u, (*batch, n), and the statuses after them, shape batch.

    A step that does not lower F is not taken. F is measured by the sum of |step F| for a score, in which the unknowns
    may have any units, and by its norm otherwise. A problem has converged, whatever its solver reported, if each entry
    of its last step is within eps ** (1/2) |u|, as the error after it is of the order of the step squared, or if F is
    within its rounding. A score whose solver failed must also have no negative curvature there. A problem that could
    not move gets the status of its linear solve (singular, indefinite, not finite), unless it had failed before.
    """
    for _ in range(steps):
        u, status = _step(problem, linear_solver, u, arrays, status, pairs)
    return u, status


def _step(
    problem: Problem, linear_solver: LinearSolver, u: Array, arrays: Arrays, status: Array, pairs: Pairs | None
) -> tuple[Array, Array]:
    xp, loops = array_namespace(u), problem.backend.loops
    (Fu,), pull = problem.backend.vjp(lambda w: (problem.residual(w, *arrays),), u)
    J = replace(operator(problem, pull, u, arrays), pairs=pairs)
    found = linear_solver(J, Fu, loop=loops.while_loop)
    step = xp.where(xp.isfinite(found.value), found.value, full(u, 0.0))
    trial = u - step
    F_trial = problem.residual(trial, *arrays)
    better = _merit(problem, step, F_trial) <= _merit(problem, step, Fu)
    moved = xp.any(better & (trial != u), axis=-1)
    u, Fu = xp.where(better, trial, u), xp.where(better, F_trial, Fu)
    short = xp.all(better & (xp.abs(found.value) <= eps(xp, u.dtype) ** 0.5 * xp.abs(u)), axis=-1)
    solved = full(status, 0) if found.status is None else without_approximate(found.status)
    barred = (solved == int(Status.SINGULAR)) | (solved == int(Status.INDEFINITE)) | (solved == int(Status.NON_FINITE))
    status = xp.where(barred & ~moved & (status == int(Status.CONVERGED)), solved, status)
    open_ = (status != int(Status.CONVERGED)) & (solved == int(Status.CONVERGED))

    def look(status: Array) -> Array:
        condition, floats = problem.optimality(arrays)
        settled = open_ & (short | within_rounding_of_terms(condition, J, Fu, u, floats))
        if problem.symmetric:
            # J is that before the step, which is short where the problem is settled
            settled = settled & ~has_negative_curvature(J, u, problem.backend)
        return xp.where(settled, full(status, int(Status.CONVERGED)), status)  # type: ignore[no-any-return]

    return u, loops.run_if(xp.any(open_), look, status)


def _merit(problem: Problem, step: Array, F: Array) -> Array:
    xp = array_namespace(F)
    if not problem.symmetric:
        return norm(F)
    weighted: Array = xp.sum(xp.abs(step / nonzero_max_abs(step) * F), axis=-1, keepdims=True)
    return weighted
