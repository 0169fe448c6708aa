"""The derivatives of one solution along many directions: one factorisation, or one batch of Krylov iterations."""

from __future__ import annotations

from dataclasses import replace

from dil._base.arrays import array_namespace
from dil._base.operator import Operator
from dil._base.status import Status
from dil._base.typing import Array
from dil._diagnostics.curvature import check_curvature, check_degenerate
from dil._diagnostics.newton_comparison import Point
from dil._diagnostics.stationarity import DerivativeSolve, has_no_size, is_near, probes_of
from dil._problem.problem import Optimality
from dil._problem.terms import within_rounding_of_terms
from dil.linear._solver import LinearSolver


def solved_together(
    linear_solver: LinearSolver, F: Optimality, A: Operator, B: Array, Fu: Array, at: Point
) -> DerivativeSolve | None:
    """Return the systems A g = b for each b of B, (k, *batch, n), solved; `A.one` is their common matrix.

    Return None if a system is not solved, or if the point is not near its solution without a doubt. The systems then
    have to be solved one by one, with all checks.
    """
    backend, xp = F.problem.backend, array_namespace(B)
    A = replace(A, probes=probes_of(A, Fu, at.scale, backend))
    solution = linear_solver(A, B, loop=backend.loops.while_loop)
    status = solution.status
    if status is None or tuple(status.shape) != tuple(B.shape[:-1]):
        return None
    solve = DerivativeSolve(F, A, B, Fu, at._replace(g=solution.value), solution, linear_solver)
    wide = solve
    if "probes" not in (solution.extra or {}):
        u, scale = (xp.broadcast_to(x, B.shape) for x in (at.u, at.scale))
        wide = solve._replace(Fu=xp.broadcast_to(Fu, B.shape), here=solve.here._replace(u=u, scale=scale))
    sizeless = has_no_size(wide)
    near = is_near(wide) & ~sizeless
    if not bool(xp.all(near | sizeless)):  # as for one right-hand side, whose F may also be within its rounding
        assert A.one is not None
        J = A.one.T if A.one.transposed else A.one
        near = near | (within_rounding_of_terms(F, J, Fu, at.u, at.floats) & ~sizeless)
    status = check_degenerate(check_curvature(status, A, B, solution, backend), A, B, backend)
    return solve if bool(xp.all(status == int(Status.CONVERGED)) & xp.all(near)) else None
