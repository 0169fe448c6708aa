"""The pattern of a matrix, found from products with it."""

from __future__ import annotations

from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps
from dil._base.operator import Operator
from dil._base.typing import Array
from dil._frameworks.loops import runs_later
from dil._frameworks.protocol import Backend
from dil.linear._dense_cost import rows_at_once
from dil.linear._pattern import (
    Entries,
    Pattern,
    entries_by_column,
    full_pattern,
    pattern_for,
    pattern_of_entries,
)
from dil.linear._peeling import Peeling, factors, powers_for
from dil.linear._sparse_factor import random_vector

COUNTS = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 67, 73, 83, 97, 113, 131, 151, 173, 199, 229)
"""The numbers of groups of columns, primes: a grid whose sides are powers of two separates columns by any of them."""
FULL = 0.9
"""Where this share of the groups of most rows has entries, the groups are too few: their number is doubled."""
MOST_PRODUCTS = 512
"""The most products that a search takes."""


class Search(NamedTuple):
    """A pattern of dF/du, or None if its rows have too many entries, and the products that the search took."""

    pattern: Pattern | None
    products: int
    entries: Entries | None = None
    """Those of the matrix D of `cheapest_direction`, or of a combination of those of a batch."""
    is_exact: bool = False
    """Whether these are the entries of one matrix with all their digits."""
    groups: int = 0
    """The groups of columns whose sums told them."""

    @property
    def scales(self) -> Any:
        """What makes the columns of D about equal in size where its rows are so, as powers of two, (n,).

        A sum of columns hides entries below rounding beside the others of their row, which decide where their column
        has another unit.
        """
        import numpy as np

        assert self.entries is not None
        pattern, sizes = self.entries.pattern, np.abs(self.entries.values)
        rows, columns = np.zeros(pattern.n), np.zeros(pattern.n)
        np.maximum.at(rows, pattern.rows, sizes)
        np.maximum.at(columns, pattern.columns, sizes / np.where(rows > 0, rows, 1.0)[pattern.rows])
        return np.ldexp(1.0, -np.frexp(np.where(columns > 0, columns, 1.0))[1])


def is_concrete(backend: Backend, x: Array) -> bool:
    """Return whether x, (*batch, n) with n > 0, has numbers now, so that they may decide what comes next."""
    compiler = backend.compiler()
    if compiler is not None:
        return not compiler.is_traced(backend.constant(x))
    return not runs_later(backend.loops, x)


def cheapest_direction(A: Operator) -> Operator:
    """Return A or its transpose: the one with products that are one pullback of F, if both are known."""
    return A if A.symmetric or A.rmatvec is None or A.transposed else A.T


def find_pattern(
    A: Operator, like: Array, backend: Backend, most: int = MOST_PRODUCTS, *, scales: Any = None
) -> Search:
    """Return the pattern of dF/du, which is A or its transpose, for vectors such as `like`, (*batch, n).

    The products are those with sums of columns, see `Peeling`: with 7 groups, and with more as long as a row shows
    another sum than that of its entries. A few such rows are read by products with the transpose. The problems of a
    batch share the pattern, so that of a random combination of their matrices is found. `scales`, (n,), are powers of
    two that the columns are multiplied by, see `Search.scales`.
    """
    D, n, machine = cheapest_direction(A), like.shape[-1], eps(array_namespace(like), like.dtype)
    powers, found, products, place = powers_for(machine), Peeling(n, machine), 0, 0
    images_of = Combination(D, like, backend)
    while True:
        count = COUNTS[place]
        cost = powers * count
        if n <= cost:
            known = _pattern_of_matrix(images_of) if n <= most else None
            return Search(known, products + n)
        if products + cost > most:
            return Search(None, products)
        vectors = sums_of_columns(like, backend, count, powers)
        sums = images_of(
            vectors if scales is None else vectors * backend.asarray(scales, dtype=like.dtype, device=device(like))
        )
        products += cost
        if sums is None:  # the solve with any pattern meets what is not finite
            return Search(pattern_for(0, n), products)
        found.add(count, sums)
        rows = found.open_rows()
        place = _next(place, found, rows.size)
        if place == len(COUNTS):
            return Search(None, products)
        # a few rows that are full, or that no group has separated
        if 0 < rows.size <= powers * COUNTS[place] and (D.symmetric or D.rmatvec is not None):
            images = images_of(_unit_vectors(rows, like, backend), transposed=True)
            products += rows.size
            if images is not None:
                found.add_rows(rows, images if scales is None else images * scales)
                rows = rows[:0]
        if rows.size == 0:
            places, values = found.entries()
            entries = entries_by_column(places, values if scales is None else values / scales[places % n], n)
            pattern = entries.transposed if D.transposed else entries.pattern
            is_exact = found.is_sharp and images_of.of_one
            return Search(pattern, products, entries, is_exact, sum([sums.groups for sums in found.sums]))


def _next(place: int, found: Peeling, still_open: int) -> int:
    """Return the place of the next number of groups."""
    count, images, terms = found.sums[-1]
    if still_open > found.n // 2 and _share_of_groups(images[0], terms[0]) > FULL:
        return next((k for k, larger in enumerate(COUNTS) if larger >= 2 * count), len(COUNTS))
    return place + 1


def _share_of_groups(left: Any, known: Any) -> float:
    """Return the share of the groups that have an entry in the median row."""
    import numpy as np

    share: float = np.median(np.count_nonzero((left != 0) | (known != 0), axis=0)) / left.shape[0]
    return share


def sums_of_columns(like: Array, backend: Backend, count: int, powers: int) -> Array:
    """Return the vectors whose products are the sums of columns, (powers * count, n)."""
    xp, n = array_namespace(like), like.shape[-1]
    groups, scaled = factors(n, count, powers)
    place = device(like)
    groups = backend.asarray(groups, device=place)
    numbers = backend.asarray(list(range(count)), dtype=groups.dtype, device=place)
    chosen = xp.astype(numbers[:, None] == groups, like.dtype)
    each = [chosen * backend.asarray(s.copy(), dtype=like.dtype, device=place) for s in scaled]
    return xp.concat(each, axis=0)  # type: ignore[no-any-return]


def _unit_vectors(rows: Any, like: Array, backend: Backend) -> Array:
    """Return the unit vectors of some rows, (len(rows), n)."""
    import numpy as np

    vectors = np.zeros((len(rows), like.shape[-1]))
    vectors[np.arange(len(rows)), rows] = 1.0
    return backend.asarray(vectors, dtype=like.dtype, device=device(like))


def products_with(D: Operator, vectors: Array, like: Array, backend: Backend) -> Array:
    """Return the products with vectors that the problems of a batch share, (k, *batch, n); vectors: (k, n)."""
    xp, count, n = array_namespace(like), vectors.shape[0], like.shape[-1]
    if like.ndim > 1:
        vectors = xp.reshape(vectors, (count, *(1,) * (like.ndim - 1), n))
        vectors = xp.broadcast_to(vectors, (count, *like.shape))
    return backend.loops.map_rows(D, vectors, rows_at_once(D, like, backend))


class Combination:
    """A random combination of the matrices of a batch, which has an entry where one of them has one."""

    def __init__(self, D: Operator, like: Array, backend: Backend) -> None:
        self.D, self.like, self.backend = D, like, backend
        self._weights: Any = None
        """Set by the first products, which tell the units: one number for each problem, zero where they are NaN."""

    @property
    def of_one(self) -> bool:
        """Whether there is one matrix only, which the combination is."""
        return self.like.ndim == 1

    def __call__(self, vectors: Array, *, transposed: bool = False) -> Any:
        """Return the products with vectors on the host, (k, n), or None if those of all problems are not finite."""
        import numpy as np

        D = self.D.T if transposed else self.D
        images = self.backend.constant(products_with(D, vectors, self.like, self.backend))
        numbers = np.asarray(self.backend.to_numpy(images), dtype=float)
        numbers = numbers.reshape(numbers.shape[0], -1, numbers.shape[-1])
        if numbers.shape[1] == 1:
            return numbers[:, 0] if np.isfinite(numbers).all() else None
        largest = np.abs(numbers).max(axis=(0, 2))
        finite = largest < np.inf
        if self._weights is None:
            known = finite & (largest > 0)
            self._weights = finite * random_vector(largest.size) / np.where(known, largest, 1.0)
        used = finite & (self._weights != 0)
        return np.einsum("b,kbn->kn", self._weights[used], numbers[:, used]) if used.any() else None


def _pattern_of_matrix(images_of: Combination) -> Pattern:
    """Return the pattern of all columns, each from a product."""
    import numpy as np

    like, D = images_of.like, images_of.D
    n = like.shape[-1]
    if n <= COUNTS[0]:
        return full_pattern(n)
    columns = images_of(_unit_vectors(np.arange(n), like, images_of.backend))
    if columns is None:
        return pattern_for(0, n)
    numbers, rows = np.nonzero(columns)
    pattern = pattern_of_entries(rows, numbers, n)
    return pattern.T if D.transposed else pattern
