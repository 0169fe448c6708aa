"""The Jacobian J = dF/du of a problem, given by its products with vectors."""

from __future__ import annotations

from dil._base.arrays import array_namespace, size
from dil._base.operator import Operator, Work
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Pull
from dil._problem.problem import Optimality, Problem


def jacobian(F: Optimality, u: Array, *floats: Array) -> Operator:
    """Return J = dF/du as an operator that is differentiable in u and in the arguments."""
    _, pull = F.problem.backend.vjp(lambda w: F(w, *floats), u)
    return operator(F.problem, pull, u, floats)


def operator(problem: Problem, pull: Pull, u: Array, arrays: Arrays) -> Operator:
    """Return J as an operator, from the pullback (p,) -> (J^T p, ...) of F at u and the other arrays of the call.

    The pullback is linear, so its own pullback is t -> J t.
    """

    def product(p: Array) -> Array:
        return pull((p,), (0,))[0]

    def work() -> Work:
        return Work(pull.work(), sum(size(x.shape) for x in arrays))

    if problem.symmetric:
        return Operator(product, symmetric=True, work=work)
    _, push = problem.backend.vjp(lambda w: (product(w),), array_namespace(u).zeros_like(u))
    return Operator(lambda t: push((t,))[0], product, work=work)
