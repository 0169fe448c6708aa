"""The bi-level implicit function theorem: the derivative of y where F(y, args) = df/du = 0.

F_y dy + F_args dargs = 0,   F_y = H symmetric

pullback      dL/dargs = -g^T F_args,   H g = dL/dy        (Look et al. 2020, Theorem 1)
pushforward   dy = -H^-1 (F_args dargs)                    (Look et al. 2020, Theorem 2)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from dil._arrays import array_namespace, device, eps, full, inner, peak, pick
from dil._differentiate import jvp
from dil._errors import ShapeError
from dil._policy import Policy, pardoned
from dil._problem import Optimality, Problem
from dil._protocol import LinearSystem
from dil._solution import Solution
from dil._status import Status
from dil._typing import Array, Arrays, Matvec
from dil.linear._operator import Operator
from dil.linear._solver import LinearSolver

SAFE = 1e-30
"""Inner products between this and its inverse have lost nothing to under- or overflow, in float32 or wider."""


@dataclass(frozen=True)
class BilevelRule:
    """The derivative of a layer's solution with respect to its arguments."""

    find: Callable[[], Problem]
    """The problem of the call: its unknown's shape is known once the solver has run."""
    linear_solver: LinearSolver
    policy: Policy

    def pullback(self, args: Arrays, y: Arrays, cotangents: Arrays, wrt: Sequence[int]) -> Arrays:
        """Return -g^T F_args for the arguments in `wrt`, where H g = v."""
        problem, (u,), (v,) = self.find(), y, cotangents
        F, floats = problem.optimality(args)
        (Fu,), pull = problem.backend.vjp(F, u, *floats)
        g = self.solve(F, Fu, u, floats, lambda p: pull((p,), (0,))[0], v)
        return pull((-g,), [1 + problem.arguments.floats.index(i) for i in wrt])

    def pushforward(self, args: Arrays, y: Arrays, tangents: Sequence[Array | None]) -> Arrays:
        """Return -H^-1 (F_args t)."""
        problem, (u,) = self.find(), y
        F, floats = problem.optimality(args)
        t = [tangents[i] for i in problem.arguments.floats]
        if all(tangent is None for tangent in t):
            return (full(u, 0.0),)
        (Fu,), (Ft,) = jvp(problem.backend, F, (u, *floats), (None, *t))
        return (self.solve(F, Fu, u, floats, hessian_product(F, u, *floats), -Ft),)

    def solve(self, F: Optimality, Fu: Array, u: Array, floats: Arrays, matvec: Matvec, b: Array) -> Array:
        """Solve H g = b, judge the answer and the point u, and act on the policy."""
        backend = F.problem.backend

        def solve(matvec: Matvec, b: Array, Fu: Array, u: Array) -> Array:
            solution = self.linear_solver(Operator(matvec, symmetric=True), b, loop=backend.while_loop)
            _check_solution(solution, b)
            status = judge(solution.status, Fu, u, b, solution.value, backend.number)
            return self.policy.settle(backend, "backward solve", status, solution.value)

        # what is only judged is no part of the derivative
        judged = (backend.constant(Fu), backend.constant(u))
        system = LinearSystem(partial(hessian_product, F), (u, *floats), matvec, solve, judged)
        return backend.linear_solve(system, b)


def hessian_product(F: Optimality, u: Array, *floats: Array) -> Matvec:
    """Return p -> H p, H = dF/du: one vector-Jacobian product, since H is symmetric."""
    _, pull = F.problem.backend.vjp(lambda w: F(w, *floats), u)
    return lambda p: pull((p,))[0]


def judge(status: Array | None, Fu: Array, u: Array, b: Array, g: Array, number: Callable[[Array], Any]) -> Array:
    """Return the statuses of the backward solve, NOT_STATIONARY where the point u is no solution.

    The step to the solution is about ||F|| over the curvature of H along g, <g, b> / <g, g>, which CG has met anyway.
    The point counts as stationary where that step is within eps ** (1/4) of 1 + ||u||: 1.2e-4 in float64, 1.9e-2 in
    float32. The error of the gradient is of first order in the same step.
    """
    xp = array_namespace(u)
    FF, gg, gb, uu = (number(inner(a, c)) for a, c in ((Fu, Fu), (g, g), (g, b), (u, u)))
    if not all(isinstance(x, float) and SAFE < abs(x) < 1 / SAFE for x in (gg, gb)) or not FF < 1 / SAFE:
        step, bound = _scaled(Fu, u, b, g)
    else:
        step, bound = FF**0.5 * gg, (1 + uu**0.5) * abs(gb)
    near = step <= bound * eps(xp, u.dtype) ** 0.25  # False for NaN
    if status is None:
        status = xp.zeros(u.shape[:-1], dtype=xp.int32, device=device(u))
    if near is True:
        return status
    doubt = pick(abs(step) < math.inf, full(status, int(Status.NOT_STATIONARY)), full(status, int(Status.NON_FINITE)))
    told: Array = xp.where((pardoned(status) != int(Status.CONVERGED)) | near, status, doubt)
    return told


def _scaled(Fu: Array, u: Array, b: Array, g: Array) -> tuple[Array, Array]:
    """Return the two sides of the comparison by cotangents scaled to one, whose squares do not under- or overflow.

    The squares of F and u may: of a huge F, which is told all the same, and of a tiny one, which is none.
    """
    xp, top_b, top_g = array_namespace(u), peak(b), peak(g)
    b, g = b / top_b, g / top_g
    step = xp.sqrt(inner(Fu, Fu)) * (top_g / top_b)[..., 0] * inner(g, g)
    return step, (1 + xp.sqrt(inner(u, u))) * abs(inner(g, b))


def _check_solution(solution: object, b: Array) -> None:
    """Refuse what a linear solver must not return, before it turns into a gradient."""
    if not isinstance(solution, Solution):
        message = f"the linear solver returned {type(solution).__name__}; expected a dil.Solution whose value is like b"
        raise ShapeError(message)
    found = tuple(getattr(solution.value, "shape", (None,)))
    if found != tuple(b.shape):
        message = f"the linear solver returned a value of shape {found}; expected shape {tuple(b.shape)}, like b"
        raise ShapeError(message)
