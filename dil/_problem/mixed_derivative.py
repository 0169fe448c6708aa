"""Whether the graph of a score's gradient in u lacks an argument: the mixed derivative is then zero without a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dil._base.arrays import array_namespace, eps, is_sparse, size
from dil._base.scale import nonzero_scale
from dil._base.typing import Array, Arrays
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality
from dil._problem.value_slopes import is_comparable

CLOSER = 4.0
"""The ratio of the two distances."""
DIRECTIONS = 3
"""Kinks that cancel along one random direction do not along all of them."""
NOISE = 256.0
"""A change of df/dtheta that is told is so many times larger than its rounding."""


def lost_arguments(
    F: Optimality,
    u: Array,
    floats: Arrays,
    scale: Array,
    wanted: Sequence[int],
    pull: Callable[..., Arrays] | None = None,
) -> list[int]:
    """Return the places in (u, *floats), among those `wanted`, of the arguments whose mixed derivative is lost.

    u, scale: (*batch, n). (dF/dtheta)^T d is the change of df/dtheta along d. An argument theta is lost if the product
    is exactly zero in all entries, and df/dtheta changes all the same: in proportion to the distance, on both sides of
    u and along several random directions d, in units of u. What is detached on purpose changes nothing in df/dtheta.
    Kinks and squares at u = 0 change it in another way. This costs one product where no product is zero, and where one
    is, two evaluations of df/dtheta if it does not change. Numbers must be readable.
    Sparse gradients are not looked at. `pull`: the pullback of F at (u, *floats), if it is at hand.
    """
    problem = F.problem
    lost = [i for i in wanted if not is_sparse(floats[i - 1]) and size(floats[i - 1].shape) > 0]
    if not (lost and is_comparable(problem, u)):
        return []
    drawn = nonzero_scale(scale) * standard_normal(problem.backend, u, DIRECTIONS, 0)
    pull = problem.backend.vjp(F, u, *floats)[1] if pull is None else pull
    products = pull((drawn[0, ...],), lost)
    lost = [i for i, x in zip(lost, products, strict=True) if not (is_sparse(x) or _has_entries(x))]
    for k in range(DIRECTIONS):
        lost = lost and _changing(F, u, floats, drawn[k, ...], lost)
    return lost


def _changing(F: Optimality, u: Array, floats: Arrays, direction: Array, places: list[int]) -> list[int]:
    """Return those of some places whose df/dtheta changes in proportion to the distance from u."""
    d = eps(array_namespace(u), u.dtype) ** (1 / 3) * direction

    def changes(step: float) -> Arrays:
        there = _slopes(F, u + step * d, floats, places)
        return tuple([(x - here[i]) / step for i, x in zip(places, there, strict=True)])

    here = {i: x for i, x in zip(places, _slopes(F, u, floats, places), strict=True) if not is_sparse(x)}
    places = list(here)
    far = dict(zip(places, changes(1.0), strict=True))
    places = [i for i in places if _is_clear(far[i], here[i])]
    # on the other side, where a kink and an even power change in another way; and closer, for jumps and odd powers
    return [i for i, x in zip(places, changes(-1.0 / CLOSER), strict=True) if _agrees(far[i], x)]


def _slopes(F: Optimality, u: Array, floats: Arrays, places: Sequence[int]) -> Arrays:
    """Return df/dtheta of the sum of the scores, for the arguments at some places."""
    problem = F.problem
    if not places:
        return ()
    # u is differentiated too: a score may use its namespace on all arrays
    (value,), pull = problem.backend.vjp(lambda u, *values: (problem.value(u, *F.arrays(values)),), u, *floats)
    found = pull((array_namespace(value).ones_like(value),), places)
    return tuple([problem.backend.constant(x) for x in found])


def _has_entries(x: Array) -> bool:
    return bool(array_namespace(x).any(x != 0))


def _is_clear(change: Array, here: Array) -> bool:
    """Return whether a change is larger than the rounding of what changes."""
    xp = array_namespace(change)
    return bool(xp.max(xp.abs(change)) > NOISE * eps(xp, here.dtype) * xp.max(xp.abs(here)))


def _agrees(far: Array, other: Array) -> bool:
    xp = array_namespace(far)
    return bool(xp.max(xp.abs(far - other)) <= xp.max(xp.abs(far)) / 8)
