"""Check that a point is stationary: a cheap test finds suspects, and a Newton step decides about them."""

from __future__ import annotations

from typing import Any, NamedTuple

from dil._base.arrays import (
    array_namespace,
    device,
    eps,
    full,
    inner,
    nonzero_max_abs,
)
from dil._base.operator import Operator
from dil._base.scale import nonzero_scale
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Loop
from dil._diagnostics.failure_policy import without_approximate
from dil._diagnostics.newton_comparison import ACCEPTED_STEP, Point, derivative_holds
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality
from dil._problem.terms import rounding, terms_of
from dil.linear._dense_cost import krylov_budget
from dil.linear._direct import dense
from dil.linear._solver import LinearSolver


class DerivativeSolve(NamedTuple):
    """The linear system of a derivative, and its solution."""

    F: Optimality
    A: Operator
    """J^T in a pullback, J in a pushforward."""
    b: Array
    Fu: Array
    """F at the point."""
    here: Point
    solution: Solution
    linear_solver: LinearSolver

    @property
    def J(self) -> Operator:
        """dF/du at the point."""
        return self.A.T if self.A.transposed else self.A


def check_stationarity(solve: DerivativeSolve) -> Array:
    """Return the statuses of a derivative, with NOT_STATIONARY where u is too far from the solution.

    Three stages. None depends on the units of u, of F and of the arguments.

    1. A point whose Newton step is not far above rounding passes: see `is_near`. This costs next to nothing.
    2. A point where each entry of F is within the rounding of its terms passes. This costs about one product.
    3. Any other point is measured: the derivative is computed again after a Newton step (see `derivative_holds`). The
       point passes if the derivative and u change by at most 1 percent. This costs a few times as much as the
       derivative, and less where a few random directions show that it hardly changes. It is a question of the
       derivative, not of u alone: a small error of u is a large one of u - t.

    A point passes by any stage, so their order is a matter of cost: where the predicted step is so long that rounding
    hardly explains it, eager arrays go through stage 3 before stage 2.

    An entry of u that is zero and never moved has no size. Then each entry of F must be small beside its terms, too.

    What it cannot see: with an iterative linear solver, an error along a direction of small curvature, if an error of
    similar gradient along a direction of large curvature hides it; and any error of F itself, such as a derivative that
    was cut.
    """
    backend, b, status = solve.F.problem.backend, solve.b, solve.solution.status
    if status is not None and step_is_short(solve, least_step(b)):
        return status
    sizeless = has_no_size(solve)
    xp, near = array_namespace(b), is_near(solve) & ~sizeless
    if status is None:
        status = xp.zeros(b.shape[:-1], dtype=xp.int32, device=device(b))
    if backend.loops.number(near) is True:
        return status
    suspect = (without_approximate(status) == int(Status.CONVERGED)) & ~near

    def doubted(status: Array) -> Array:
        finite = xp.all(xp.isfinite(solve.Fu) & xp.isfinite(solve.here.g), axis=-1)
        status = xp.where(suspect & ~finite, full(status, int(Status.NON_FINITE)), status)
        return _measured(solve, status, suspect & finite, sizeless)

    checked: Array = backend.loops.run_if(xp.any(suspect), doubted, status)
    return checked


def _measured(solve: DerivativeSolve, status: Array, suspect: Array, sizeless: Array) -> Array:
    """Return the statuses after stages 2 and 3, with NOT_STATIONARY for the suspects that pass neither."""
    xp, run_if = array_namespace(solve.b), solve.F.problem.backend.loops.run_if
    failure, size = full(status, int(Status.NOT_STATIONARY)), xp.abs(solve.Fu)

    def terms() -> Array:
        return terms_of(solve.F, solve.J, solve.Fu, solve.here.u, solve.here.floats)

    def rounded(terms: Array) -> Array:
        return xp.all(size <= rounding(solve.b) * terms, axis=-1)  # type: ignore[no-any-return]

    def holds() -> Array:
        return derivative_holds(solve.F, solve.A, solve.b, solve.Fu, solve.here, measuring_solver(solve))

    if _steps_are_long(solve, suspect, sizeless):
        moved = suspect & ~holds()
        return run_if(xp.any(moved), lambda s: xp.where(moved & ~rounded(terms()), failure, s), status)  # type: ignore[no-any-return]
    found = terms()
    far, sized = suspect & ~rounded(found), ~sizeless | xp.all(size <= ACCEPTED_STEP * found, axis=-1)
    return run_if(xp.any(far), lambda s: xp.where(far & ~(holds() & sized), failure, s), status)  # type: ignore[no-any-return]


def _steps_are_long(solve: DerivativeSolve, suspect: Array, sizeless: Array) -> bool:
    """Return whether all predicted steps are known to be longer than eps ** (1/2) of u, and no u is without size."""
    backend, xp = solve.F.problem.backend, array_namespace(solve.b)
    if runs_later(backend.loops, solve.b):
        return False  # a compiled program holds both stages in one order
    short = is_near(solve, Near(float(eps(xp, solve.b.dtype)) ** 0.5, float("inf")))
    return backend.loops.number(xp.any(sizeless | (suspect & short))) is False


class Near(NamedTuple):
    """What is near: the longest step, relative to u, and the largest error of the loss, relative to its terms."""

    step: float
    loss: float


def is_near(solve: DerivativeSolve, most: Near | None = None) -> Array:
    """Return whether each point is surely near its solution, shape batch.

    Each entry of the Newton step J^-1 F must be within min(eps ** (3/4), 1e-3) of the scale of u. A dense solver gives
    the step or, if its matrix is J^T, two random combinations of the entries. Other solvers give the curvature along g.
    The step that this curvature predicts must be within eps ** (3/4), relative to u, and the error of the loss that F
    predicts within eps ** (1/2). `most` replaces these bounds.
    """
    b, probes = solve.b, solved_probes(solve)
    xp = array_namespace(b)
    most = Near(least_step(b), float(eps(xp, b.dtype)) ** 0.5) if most is None else most
    if solve.A._inverse is not None:
        return xp.asarray(step_is_short(solve, most.step), device=device(b))  # type: ignore[no-any-return]
    if probes is None:
        return is_near_along(solve, most)
    scale = nonzero_scale(solve.here.scale)
    small = most.step
    if gives_step(solve.A):
        near: Array = xp.all(xp.abs(probes[0]) <= small * scale, axis=-1)
        return near
    return (abs(inner(probes[0], solve.Fu)) <= small) & (abs(inner(probes[1], solve.Fu)) <= small)


def step_is_short(solve: DerivativeSolve, rtol: float) -> bool:
    """Return whether a small inverse is known, and each entry of J^-1 F is within rtol of the scale of u.

    An entry of u without a size has no short step.
    """
    known, numbers = solve.A._inverse, solve.F.problem.backend.loops.numbers
    if known is None:
        return False
    return known.step_is_short(numbers(solve.Fu), numbers(solve.here.scale), rtol, transposed=not gives_step(solve.A))


def is_near_along(solve: DerivativeSolve, most: Near) -> Array:
    """Return whether the step that the curvature along g predicts is short, and the error of the loss small.

    Neither changes if g, b, u and F get other units. So the vectors are scaled where their sums could underflow or
    overflow, or cannot be read. Scalars that can be read are compared as Python numbers, which is faster for few
    unknowns.
    """
    here, b, number = solve.here, solve.b, solve.F.problem.backend.loops.number
    F, g, u, xp = solve.Fu, here.g, here.scale, array_namespace(b)
    sums: Any = [number(x) for x in _sums(F, g, b, u)] if isinstance(number(inner(F, F)), float) else []
    safe = float(xp.finfo(b.dtype).smallest_normal) / eps(xp, b.dtype)
    if not sums or not all(safe < abs(x) < 1 / safe for x in sums):
        top_g, top_b, top_u = nonzero_max_abs(g), nonzero_max_abs(b), nonzero_max_abs(u)
        sums = _sums(F * (top_g / top_b) / top_u, g / top_g, b / top_b, u / top_u)
    FF, gg, uu, gb, gF, bu = sums
    near = FF**0.5 * gg <= abs(gb) * (most.step * uu**0.5)
    if solve.A.symmetric or solve.A.transposed:  # otherwise g is no cotangent, and F predicts no error of a loss
        near = near & (gF <= most.loss * bu)
    return xp.asarray(near, device=device(b))  # type: ignore[no-any-return]


def _sums(F: Array, g: Array, b: Array, u: Array) -> Arrays:
    xp = array_namespace(b)
    size_F, size_g, size_b = (xp.abs(x) for x in (F, g, b))
    return (inner(F, F), inner(g, g), inner(u, u), inner(g, b), inner(size_g, size_F), inner(size_b, u))


def least_step(b: Array) -> float:
    """Return the largest relative step that is near without a doubt."""
    return min(float(eps(array_namespace(b), b.dtype) ** 0.75), 1e-3)


def has_no_size(solve: DerivativeSolve) -> Array:
    """Return whether an entry of u is zero and never moved, so that no step is short beside it; shape batch."""
    xp = array_namespace(solve.b)
    sizeless: Array = xp.any(solve.here.scale == 0, axis=-1)
    if solve.F.problem.backend.loops.number(sizeless) is False:
        return sizeless
    return sizeless & xp.any(solve.Fu != 0, axis=-1)  # type: ignore[no-any-return]


def probes_of(A: Operator, Fu: Array, scale: Array, backend: Backend) -> Arrays:
    """Return right-hand sides whose solutions show the Newton step: F itself, or random vectors e in units of 1 / u.

    A known inverse gives the step without them.
    If A is J^T and not symmetric, x = A^-1 e gives <x, F> = <e, J^-1 F>, a combination of the relative steps.
    """
    if A._inverse is not None:
        return ()
    if gives_step(A):
        return (Fu,)
    drawn, scale = standard_normal(backend, full(scale, 0.0, shape=scale.shape[-1:]), 2, 0), nonzero_scale(scale)
    return (drawn[0, ...] / scale, drawn[1, ...] / scale)


def gives_step(A: Operator) -> bool:
    """Return whether the matrix of the system is J, and not its transpose."""
    return A.symmetric or not A.transposed


def solved_probes(solve: DerivativeSolve) -> Any:
    """Return the solutions of the probes if the linear solver computed them, else None."""
    return (solve.solution.extra or {}).get("probes")


def measuring_solver(solve: DerivativeSolve) -> LinearSolver:
    """Return LU where it is cheap, and the layer's own solver elsewhere.

    A program that compiles takes LU for all moderate sizes: each iteration that it holds takes long to compile.
    """
    backend, n = solve.F.problem.backend, solve.b.shape[-1]

    def by_lu(A: Operator, b: Array, /, *, loop: Loop | None = None) -> Solution:
        return Solution(backend.dense.lu_solve(dense(A, b, backend), b[..., None])[..., 0])

    moderate = n <= backend.dense.crossover.general
    cheap = moderate and (runs_later(backend.loops, solve.b) or krylov_budget(solve.A, solve.b, backend) == 0)
    return by_lu if cheap else solve.linear_solver
