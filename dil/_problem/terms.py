"""The size of the terms of F, beside which F at a solution is small."""

from __future__ import annotations

from dil._base.arrays import array_namespace, eps, full
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays
from dil._frameworks.forward_mode import jvp_from_vjp
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality


def change_with_arguments(F: Optimality, u: Array, floats: Arrays) -> Array:
    """Return how F(u, *floats) changes where each entry of the arguments changes by a random multiple of itself.

    This is the size of the terms of F that the arguments make, whatever the units: u itself may be zero.
    """
    backend = F.problem.backend
    if not floats or getattr(F.problem.condition, "derivatives", None) is not None:
        return full(u, 0.0)  # products that a user wrote take no arrays that are traced
    likes = [full(u, 0.0, shape=getattr(x, "shape", ())) for x in floats]  # a number under JAX has no shape
    drawn = [standard_normal(backend, like, 1, seed)[0, ...] for seed, like in enumerate(likes)]
    moves = [x * d for x, d in zip(floats, drawn, strict=True)]
    _, (change,) = jvp_from_vjp(backend, F, (u, *floats), (None, *moves))
    return backend.constant(change)


def terms_of(F: Optimality, J: Operator, u: Array, floats: Arrays) -> Array:
    """Return the size of the terms of F, (*batch, n): those of the unknown and those of the arguments."""
    xp = array_namespace(u)
    size: Array = xp.abs(J(u)) + xp.abs(change_with_arguments(F, u, floats))
    return size


def within_rounding_of_terms(F: Optimality, J: Operator, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return whether each entry of F is within the rounding of its terms, shape batch."""
    xp = array_namespace(u)
    small: Array = xp.all(xp.abs(Fu) <= 32 * eps(xp, u.dtype) * terms_of(F, J, u, floats), axis=-1)
    return small
