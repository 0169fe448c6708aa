"""A stage solved by a fixed number of iterations, each of them differentiated. It is for comparison."""

from __future__ import annotations

from dataclasses import dataclass

from dil._base.arrays import array_namespace, full, norm
from dil._base.operator import Operator
from dil._base.status import Status, first_of
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import LinearSystem
from dil._problem.jacobian import jacobian
from dil._problem.problem import Problem
from dil._problem.space import space_of
from dil.linear._direct import Direct
from dil.linear._solver import LinearSolver
from dil.ode._stage_layer import StageLayer
from dil.solvers._anderson import Anderson
from dil.solvers._fixed_point import FixedPoint
from dil.solvers._start import size_of, tolerance


@dataclass(frozen=True)
class UnrolledStage:
    """The iteration of Newton or Picard, without safeguards. Derivatives go through every iteration."""

    stage: StageLayer
    count: int

    def __call__(self, base: Array, t: Array, gh: Array, arrays: Arrays, guess: Array) -> tuple[Array, Arrays]:
        """Return z after `count` iterations from the guess, and the outcome: status, iterations, linear ones."""
        call = self.stage.call
        backend, args, u = call.backend, (base, t, gh, *arrays), call.backend.constant(guess)
        call.space = space_of(u, call.condition.batch_ndim, "the state")[1]
        problem, picard = call.problem(), isinstance(call.solver, FixedPoint | Anderson)
        rtol = tolerance(u, getattr(call.solver, "rtol", None), 0.75 if picard else 0.5)
        linear_solver = getattr(call.solver, "linear_solver", None) or Direct()

        def iterate(carry: Arrays, _: Arrays) -> tuple[Arrays, Arrays]:
            (u,) = carry
            new = picard_step(problem, u, args) if picard else u - newton_step(problem, u, args, linear_solver)
            return (new,), (backend.constant(norm(new - u) / size_of(new, backend.constant(guess))),)

        rows = array_namespace(u).zeros_like(full(u, 0.0, shape=(self.count,)))
        (z,), step_sizes = backend.loops.scan(iterate, (u,), (rows,))
        last = backend.constant(step_sizes[0][-1, ...])[..., 0]
        near, finite = last <= rtol, array_namespace(u).isfinite(last)
        status = first_of([(near, Status.CONVERGED), (finite, Status.MAX_ITER)], Status.NON_FINITE)
        zero = full(last, 0.0)
        return z, (array_namespace(u).astype(status, u.dtype), zero + self.count, zero)


def picard_step(problem: Problem, u: Array, arrays: Arrays) -> Array:
    """Return the next iterate. u is differentiated too: the function may use its namespace on all arrays."""
    (new,), _ = problem.backend.vjp(lambda w: (problem.image(w, *arrays),), u)
    return new


def newton_step(problem: Problem, u: Array, arrays: Arrays, linear_solver: LinearSolver) -> Array:
    """Return the solution d of J d = F, differentiable in u and in the arrays."""
    backend = problem.backend
    F, floats = problem.optimality(arrays)
    params = (u, *floats)
    (Fu,), _ = backend.vjp(lambda w: F(w, *floats), u)

    def build(*params: Array) -> Operator:
        return jacobian(F, *params)

    def solve(A: Operator, b: Array) -> Array:
        return linear_solver(A, b, loop=backend.loops.while_loop).value  # type: ignore[no-any-return]

    return backend.linear_solve(LinearSystem(build, params, jacobian(F, *params), solve), Fu)
