"""A diagonal R that makes the rows of R A R about equal in size, from products with random signs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, full, nonzero_max_abs, select
from dil._base.scalars import either
from dil._base.typing import Array, Matvec
from dil._frameworks.loops import Loops
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import random_signs


class Diagonal(NamedTuple):
    """An estimate of the diagonal of A. Vectors: (*batch, n)."""

    root: Array
    """R, near diag(A)^(-1/2). It is positive."""
    difference: Array
    """The mean of |a - b| / (|a| + |b|) over the rows, for the first two estimates a and b: zero if A is diagonal,
    about 1/2 and more if its other entries are larger than the diagonal, (*batch, 1)."""
    concentration: Array
    """About the mean of the squares of the eigenvalues over the square of their mean, from two products, (*batch, 1).
    It is large if a few eigenvalues are far above the others: 1.5 for a chain, n / k for k equal ones above zeros."""
    products: Any
    """The products that it took: an int, or an array of shape () in a trace."""


class Estimate(NamedTuple):
    """The state between two products. Vectors: (*batch, n)."""

    root: Array
    total: Array
    """The sum of z * (R A R z) in this round."""
    squares: Array
    """The sum of (R A R z)^2 in this round."""
    last: Array
    """The last z * (R A R z)."""
    difference: Array
    concentration: Array
    k: Any
    """The products so far: an int, or an array of shape () in a trace."""
    in_round: Any
    """The products of this round."""


def estimated_diagonal(
    A: Matvec,
    like: Array,
    backend: Backend,
    *,
    probes: int,
    seed: int,
    loops: Loops,
    goes_on: Callable[[Any, Array], Any] = lambda k, difference: True,
) -> Diagonal:
    """Return the diagonal of A as R, by products with vectors of random signs; `like`: (*batch, n).

    The mean of z * (A z) over vectors z of random signs is the diagonal, with an error of the size of the entries off
    the diagonal. Where the rows differ in scale, the large ones drown the small ones. So there are three rounds, with a
    quarter, a quarter and a half of the probes. Each estimates the diagonal of R A R, whose rows differ less than those
    of A, and improves R by it. An estimate below half the norm of its row is replaced by that half, so it is positive
    for every A.

    The estimate ends early where `goes_on(k, difference)`, a bool or an array of shape (), is false after k products.

    Sources: Hutchinson 1990; Bekas, Kokiopoulou and Saad 2007, section 2; Bradley and Murray 2011 (the rounds).
    """
    xp = array_namespace(like)
    signs = random_signs(backend, like, probes, seed) + full(like, 0.0)
    ends = sorted({max(probes // 4, 1), max(probes // 2, min(2, probes)), probes})

    def advance(s: Estimate) -> Estimate:
        z = signs[s.k, ...] if isinstance(s.k, int) else xp.take(signs, s.k[None], axis=0)[0, ...]
        return _advanced(A, s, z, ends)

    zero, one = full(like, 0.0), full(like[..., :1], 1.0)
    first = Estimate(full(like, 1.0), zero, zero, zero, one, one, 0, 0)
    last: Estimate = loops.while_loop(lambda s: (s.k < probes) & goes_on(s.k, s.difference), advance, first)
    return Diagonal(last.root, last.difference, last.concentration, last.k)


def _advanced(A: Matvec, s: Estimate, z: Array, ends: list[int]) -> Estimate:
    """Multiply by one more vector of signs z. At the end of a round, improve R."""
    xp = array_namespace(z)
    product = s.root * A(s.root * z)
    # squares of tiny and huge entries would underflow or overflow
    unit = either(s.k == 0, lambda: nonzero_max_abs(product), lambda: full(z[..., :1], 1.0))
    root, product = s.root / xp.sqrt(unit), product / unit
    value = z * product
    total, squares = s.total + value, s.squares + product * product
    k, count = s.k + 1, s.in_round + 1
    is_end = k == ends[0]
    for end in ends[1:]:
        is_end = is_end | (k == end)

    def improved() -> Array:
        row_norm = xp.sqrt(squares / count)
        # a row of zeros takes part in no product
        row_norm = xp.where(row_norm > 0, row_norm, full(row_norm, 1.0))
        return root / xp.sqrt(xp.maximum(total / count, 0.5 * row_norm))  # type: ignore[no-any-return]

    return Estimate(
        either(is_end, improved, lambda: root),
        select(is_end, full(z, 0.0), total),
        select(is_end, full(z, 0.0), squares),
        value,
        either(k == 2, lambda: _difference(value, s.last), lambda: s.difference),
        either(k == 2, lambda: _concentration(total, squares), lambda: s.concentration),
        k,
        select(is_end, 0, count),
    )


def _difference(a: Array, b: Array) -> Array:
    """Return the mean of |a - b| / (|a| + |b|), (*batch, 1)."""
    xp, sizes = array_namespace(a), abs(a) + abs(b)
    return xp.mean(abs(a - b) / xp.where(sizes > 0, sizes, full(sizes, 1.0)), axis=-1, keepdims=True)  # type: ignore[no-any-return]


def _concentration(total: Array, squares: Array) -> Array:
    """Return the ratio of the means, (*batch, 1), from sums over two products."""
    xp = array_namespace(total)
    mean, square = (xp.mean(v, axis=-1, keepdims=True) / 2 for v in (total, squares))
    return xp.where(mean == 0, full(mean, 1.0), square / xp.where(mean == 0, full(mean, 1.0), mean) ** 2)  # type: ignore[no-any-return]
