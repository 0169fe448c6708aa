"""The size of the terms of F, beside which F at a solution is small."""

from __future__ import annotations

from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, eps, full, is_sparse, max_abs, nonzero_or_one
from dil._base.operator import Operator
from dil._base.typing import Array, Arrays
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil._problem.problem import Optimality

DRAWS = 8
"""The most random changes of the unknown that are looked at."""
PROBES = 8
"""The number of random vectors that estimate |A| w, entry by entry."""
TURNS = 10.0
"""The standard deviation of the phases, in radians: their cosines are those of uniform angles."""


class Drawn(NamedTuple):
    """A look at the terms of F under way."""

    count: Any
    terms: Array
    """The size of the terms, as the draws show it, (*batch, n)."""


def change_with_arguments(F: Optimality, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return how F(u, *floats) changes where each entry of the arguments changes by a random multiple of itself.

    This is the size of the terms of F that the arguments make, whatever the units: u itself may be zero. A difference
    over eps ** (1/2) estimates it to as many digits. It is zero where the difference is not finite. All entries of a
    sparse argument change by one multiple: numbers for each of them, zeros too, would be a dense array.
    """
    if not floats:
        return full(u, 0.0)
    backend, xp = F.problem.backend, array_namespace(u)
    step = eps(xp, u.dtype) ** 0.5
    # a number under JAX has no shape
    likes = [full(u, 0.0, shape=() if is_sparse(x) else getattr(x, "shape", ())) for x in floats]
    drawn = [standard_normal(backend, like, 1, seed)[0, ...] for seed, like in enumerate(likes)]
    (moved,) = F(u, *(x * (1.0 + step * d) for x, d in zip(floats, drawn, strict=True)))
    change = (backend.constant(moved) - Fu) / step
    return xp.where(xp.isfinite(change), change, full(change, 0.0))  # type: ignore[no-any-return]


def rounding(u: Array) -> float:
    """Return the share of its terms that F at a solution may have: 32 eps, and eps ** (3/4) in 16 bits."""
    machine = float(eps(array_namespace(u), u.dtype))
    return float(min(32 * machine, machine**0.75))


def terms_of(F: Optimality, J: Operator, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return the size of the terms of F, (*batch, n): those of the unknown and those of the arguments.

    Where terms cancel in J u, as forces do in a symmetric structure, they show in J (u * z) for random numbers z. Each
    draw misses some by chance. So draws are added while an entry of F is not within the rounding of its terms, unless F
    is far above the terms that all entries have. The first draw does not ask this: the terms of a Laplacian cancel in
    J u of every smooth u, and those of the arguments are as small.
    """
    backend, xp = F.problem.backend, array_namespace(u)
    phases = TURNS * standard_normal(backend, full(u, 0.0, shape=u.shape[-1:]), 1, 0)[0, ...]
    size, share = xp.abs(Fu), rounding(u)

    def unknown(s: Drawn) -> Array:
        far = (max_abs(Fu) > 8 * share * max_abs(s.terms)) & (s.count > 0)
        return (s.count < DRAWS) & xp.any(xp.any(size > share * s.terms, axis=-1) & ~far)  # type: ignore[no-any-return]

    def draw(s: Drawn) -> Drawn:
        return Drawn(s.count + 1, xp.maximum(s.terms, xp.abs(J(u * xp.cos((s.count + 1) * phases)))))

    first = Drawn(0, xp.abs(J(u)) + xp.abs(change_with_arguments(F, Fu, u, floats)))
    last: Drawn = backend.loops.while_loop(unknown, draw, first)
    return last.terms


def within_rounding_of_terms(F: Optimality, J: Operator, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return whether each entry of F is within the rounding of its terms, shape batch. See `terms_of`."""
    xp, terms = array_namespace(u), terms_of(F, J, Fu, u, floats)
    small: Array = xp.all(xp.abs(Fu) <= rounding(u) * terms, axis=-1)
    return small


def within_rounding_of_unknowns(F: Optimality, J: Operator, Fu: Array, u: Array, floats: Arrays) -> Array:
    """Return the same where all terms of an entry may be rounding, shape batch.

    An unknown that is zero by symmetry is left with the rounding of the terms of its equation, and an equation of such
    unknowns alone has no terms to compare with. So the unknown j counts as one of the size of the terms of an equation
    that contains it over its derivative there, the least of all such equations but those without terms. An entry is
    rounding, too, if it is within that of the terms that unknowns of such sizes would make, and its own terms are no
    more than eps ** (3/4) of these.

    Which equations have no terms is seen with larger sizes: those where the unknown j belongs to the equation j.
    """
    backend, xp = F.problem.backend, array_namespace(u)
    terms, size, share = terms_of(F, J, Fu, u, floats), xp.abs(Fu), rounding(u)

    def look(small: Array) -> Array:
        slopes = spread(J, full(u, 1.0), backend)
        none, least = full(u, 0.0), eps(xp, u.dtype) ** 0.75
        largest = xp.abs(u) + xp.where(slopes > 0, terms / nonzero_or_one(slopes), none)
        empty = terms <= least * spread(J, largest, backend)
        shares = spread(J.T, xp.where(empty, none, 1.0 / nonzero_or_one(terms)), backend)
        sizes = xp.abs(u) + xp.where(shares > 0, 1.0 / nonzero_or_one(shares), none)
        through = spread(J, sizes, backend)
        empty = terms <= least * through
        found: Array = small | (empty & (size <= share * through))
        return found

    small = size <= share * terms
    every: Array = xp.all(backend.loops.run_if(~xp.all(small), look, small), axis=-1)
    return every


def spread(A: Operator, size: Array, backend: Backend, probes: int = PROBES) -> Array:
    """Return |A| size, entry by entry: estimated by random vectors if the matrix is not known."""
    xp = array_namespace(size)
    if A.matrix is not None:
        return xp.sum(xp.abs(A.matrix) * size[..., None, :], axis=-1)  # type: ignore[no-any-return]
    drawn = standard_normal(backend, size, PROBES, 0)[:probes, ...]
    return xp.max(xp.abs(backend.loops.map_rows(lambda p: A(size * p), drawn)), axis=0)  # type: ignore[no-any-return]
