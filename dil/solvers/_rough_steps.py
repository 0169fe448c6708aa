"""Steps of Newton's method towards a root that a linear solver of the user's leaves too rough."""

from __future__ import annotations

from dil._base.arrays import array_namespace, norm
from dil._base.operator import shifted
from dil._base.typing import Array
from dil.linear._auto import Auto
from dil.linear._solver import LinearSolver
from dil.solvers._linearised import linearised, records
from dil.solvers._start import Start

SHARE = 0.5
"""A step is rough if it leaves more of the linear system than this, and leads on if it leaves less of F."""


def has_rough_steps(started: Start, u: Array, stopped: Array, solver: LinearSolver | None, damping: float) -> Array:
    """Return which of the problems that stopped without a root did so by their linear solver, (*batch, 1).

    It does not halve the residual of J d = F at u, and the step d of `Auto` halves F itself. Near a minimum of ||F||
    that is no root there is no such step. Programs that are recorded are not looked at, for they would hold both
    solvers.
    """
    none: Array = stopped & ~stopped
    if solver is None or isinstance(solver, Auto) or started.problem.symmetric or records(started, u):
        return none
    backend, given = started.problem.backend, solver

    def look(_: Array) -> Array:
        F, J = linearised(started, u)
        J = shifted(J, damping)
        left = norm(F - J(given(J, F, loop=backend.loops.while_loop).value))
        step = Auto()(J, F, loop=backend.loops.while_loop).value
        there = norm(started.problem.residual(u - step, *started.arrays))
        return stopped & (left > SHARE * norm(F)) & (there <= SHARE * norm(F))

    found: Array = backend.loops.run_if(array_namespace(u).any(stopped), look, none)
    return found
