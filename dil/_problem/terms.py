"""The size of the terms of F, beside which F at a solution is small."""

from __future__ import annotations

from dil._base.arrays import array_namespace, eps, full
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality


def change_with_arguments(F: Optimality, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return how F(u, *floats) changes where each entry of the arguments changes by a random multiple of itself.

    This is the size of the terms of F that the arguments make, whatever the units: u itself may be zero. A difference
    over eps ** (1/2) estimates it to as many digits. It is zero where the difference is not finite.
    """
    if not floats:
        return full(u, 0.0)
    backend, xp = F.problem.backend, array_namespace(u)
    step = eps(xp, u.dtype) ** 0.5
    likes = [full(u, 0.0, shape=getattr(x, "shape", ())) for x in floats]  # a number under JAX has no shape
    drawn = [standard_normal(backend, like, 1, seed)[0, ...] for seed, like in enumerate(likes)]
    (moved,) = F(u, *(x + step * (x * d) for x, d in zip(floats, drawn, strict=True)))
    change = (backend.constant(moved) - Fu) / step
    return xp.where(xp.isfinite(change), change, full(change, 0.0))  # type: ignore[no-any-return]


def terms_of(F: Optimality, J: Operator, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return the size of the terms of F, (*batch, n): those of the unknown and those of the arguments."""
    xp = array_namespace(u)
    size: Array = xp.abs(J(u)) + xp.abs(change_with_arguments(F, Fu, u, floats))
    return size


def rounding(u: Array) -> float:
    """Return the share of its terms that F at a solution may have: 32 eps, and eps ** (3/4) in 16 bits."""
    machine = float(eps(array_namespace(u), u.dtype))
    return float(min(32 * machine, machine**0.75))


def within_rounding_of_terms(F: Optimality, J: Operator, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return whether each entry of F is within the rounding of its terms, shape batch."""
    xp = array_namespace(u)
    small: Array = xp.all(xp.abs(Fu) <= rounding(u) * terms_of(F, J, Fu, u, floats), axis=-1)
    return small
