"""The Jacobian J = dF/du of a problem, given by its products with vectors."""

from __future__ import annotations

from dil._base.arrays import array_namespace
from dil._base.operator import Operator
from dil._base.typing import Array, Matvec
from dil._problem.problem import Optimality, Problem


def jacobian(F: Optimality, u: Array, *floats: Array) -> Operator:
    """Return J = dF/du as an operator that is differentiable in u and in the arguments."""
    _, pull = F.problem.backend.vjp(lambda w: F(w, *floats), u)
    return operator(F.problem, lambda p: pull((p,))[0], u)


def operator(problem: Problem, pull: Matvec, u: Array) -> Operator:
    """Return J as an operator, from the pullback p -> J^T p. It is linear, so its own pullback is t -> J t."""
    if problem.symmetric:
        return Operator(pull, symmetric=True)
    _, push = problem.backend.vjp(lambda w: (pull(w),), array_namespace(u).zeros_like(u))
    return Operator(lambda t: push((t,))[0], pull)
