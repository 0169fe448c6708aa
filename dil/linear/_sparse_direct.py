"""Solve A x = b by a sparse matrix: recover it from a few products, then factorise it on the host."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, finite_max, full, size
from dil._base.operator import Operator, as_operator
from dil._base.solution import Solution
from dil._base.status import Status
from dil._base.typing import Array, Arrays, Loop, Matvec
from dil._frameworks.protocol import Backend
from dil.linear._cg import CG
from dil.linear._choice import Choice
from dil.linear._choice_in_words import Reason, Tried
from dil.linear._decoded_factor import Decoding, plan_of_sums
from dil.linear._found_pattern import Search, cheapest_direction, find_pattern, is_concrete, products_with
from dil.linear._known_patterns import KNOWN_PATTERNS
from dil.linear._pattern import Pattern, PatternLike, full_pattern, given_pattern, pattern_for, union
from dil.linear._right_hand_side import backend_of_system
from dil.linear._sparse_factor import HostSolve, Matrix, Recovery, import_sparse, random_vector, solve_each
from dil.linear._way import cheapest_way, seeds_of

MOST_SCALED = 3
"""The most searches in the units of the entries that the one before has found."""


@dataclass(frozen=True)
class SparseDirect:
    """Solve (A + damping I) x = b by a sparse factorisation, separately for each problem of a batch.

    Parameters
    ----------
    pattern : sparse array, array of bool, "tridiagonal", int or callable, optional
        Where J = dF/du may differ from zero: entry (i, j) where F_i depends on u_j. By default it is found, see below.
        It is a SciPy sparse array or matrix, (n, n), of which the stored entries count; a NumPy array of bool, (n, n);
        "tridiagonal"; a number k for |i - j| <= k; or a function that returns one of these for n. The unknown of a
        layer is flattened in C order. The problems of a batch share the pattern. The diagonal always belongs to it.
    damping : float
        The number added to the diagonal of A, in the units of A.

    Notes
    -----
    The columns are grouped so that no two of a group share a row, and one product gives the entries of a whole group
    (Curtis, Powell and Reid 1974): by remainders where these separate them, else largest first (Coleman and Moré 1983,
    section 4). Where the transpose is known, the
    rows are grouped instead if that takes no more products: a product with J^T is one pullback. The columns of a
    symmetric matrix that no remainders separate are coloured so that each entry can be read as it is or as that of the
    transpose, without substitutions (a star colouring: Gebremedhin, Manne and Pothen 2005). The groups of a pattern are
    found once.

    Without a pattern, sums of columns are recovered first: 14 products of the columns in 7 groups, by their numbers
    modulo 7, and 22 more in 11 groups, and so on, until each entry has stood alone in a group of its row, but for
    others that are known by then. A random factor for each column, and one that counts the columns, tell which one an
    entry belongs to. The first solve takes the entries that the search has found, unless one has lost digits to larger
    ones of its row. A grid takes 14 to 62 products at any size, a graph without order more. A few rows that remain are
    read by products with the transpose. The pattern is kept for the function of a layer and the shapes of its unknown,
    and found anew, once, where it is wrong: an entry may be zero at one point and not at the next. More than 512
    products are not taken: then the matrix is too full, and the status is WRONG_PATTERN. Under a compiler, 96 products
    (144 in single precision) give the entries themselves, for each solve.

    The matrix is factorised on the host by SuperLU, `scipy.sparse.linalg.splu`, in float64, once for all right-hand
    sides. The factors of the last solve serve a matrix near by, by refinement to rounding: those of Newton's last step
    the backward pass. Rows and columns are scaled to size one first. A matrix that then looks singular is scaled by
    least squares of the logarithms of its entries, which takes any units from it (Curtis and Reid 1972). A symmetric
    pattern, and a matrix with large entries on the diagonal, at least a hundredth of the size of their columns, take
    pivots on the diagonal and a minimum degree order; where that is not exact to rounding, and for others, pivots are
    chosen in the column (Demmel et al. 1999). One step of refinement follows where it is needed. Under a compiler this
    is a host callback. It needs SciPy.

    A problem ends CONVERGED if its residual is at rounding as in `Direct`, and the condition number of the scaled
    matrix is below 1 / (32 eps). It is estimated from below, with b and one step of inverse iteration from a random
    vector. Otherwise it ends SINGULAR, or NON_FINITE if the products or b are not finite.

    A wrong pattern is never used, and one that was given is told: a product with a random vector, and one with the
    solution, are compared with those of the matrix that was recovered. Where a row differs by more than eps ** (2/3) of
    its terms (3.7e-11 in float64), and for the solution by more than rounding, the status is WRONG_PATTERN and the
    solution is NaN. Without a given pattern, the columns are searched again first, in the units of the entries that
    were found: an entry below the rounding of its row decides where its column has another unit.

    `extra` holds the numbers of `products` and of `colours`, which are the groups of columns, the `fill`, which is the
    number of entries of the factors beside those of the matrix that are not zero, and the `condition` number.

    Raises
    ------
    OptionError
        If an option is out of range, or SciPy is absent.
    ShapeError
        If the pattern is not square, or that of another number of unknowns.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def F(u, t):  # -u'' = t exp(u) between zeros
    ...     inner = np.pad(u, 1)
    ...     return 2.0 * u - inner[:-2] - inner[2:] - t * np.exp(u)
    >>> solver = dil.linear.SparseDirect("tridiagonal")
    >>> newton = dil.solvers.Newton(linear_solver=solver)
    >>> layer = dil.root(F, newton, linear_solver=solver, init=lambda t: 0.0 * t)
    >>> y, pull = dil.vjp(layer, np.full(1000, 1e-6))
    >>> round(float(np.max(y)), 4), round(float(np.max(pull(np.ones(1000))[0])))
    (0.1409, 163447)
    """

    pattern: PatternLike = None
    damping: float = 0.0

    _takes_many = True
    """Whether it solves for many right-hand sides, (k, *batch, n), of an operator with `one`."""

    def __post_init__(self) -> None:
        CG(damping=self.damping)
        if self.pattern is not None:
            object.__setattr__(self, "pattern", given_pattern(self.pattern))

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch. The start x0 is ignored."""
        backend = backend_of_system(b, "dil.linear.SparseDirect", x0)
        import_sparse()
        A = as_operator(A)
        one, like = (A, b) if A.one is None else (A.one, b[0, ...])
        if self.pattern is not None:
            pattern = pattern_for(self.pattern, b.shape[-1])
            return _of_nothing(b) if size(b.shape) == 0 else self._by_pattern(A, b, pattern, backend)
        if size(b.shape) == 0:
            return _of_nothing(b)
        if is_concrete(backend, b):
            return self._by_found_pattern(A, b, one, like, backend)
        plan = plan_of_sums(one, like)
        if plan is None:
            return self._by_pattern(A, b, full_pattern(b.shape[-1]), backend)
        recovery = Decoding(plan.counts, b.shape[-1], self._matrix_of(one, plan.D, like))
        return self._solved(A, b, recovery.solve, plan.vectors(like, backend), plan.D, backend)

    def _by_pattern(self, A: Operator, b: Array, pattern: Pattern, backend: Backend) -> Solution:
        """Solve by a pattern of dF/du."""
        one, like = (A, b) if A.one is None else (A.one, b[0, ...])
        way = cheapest_way(one, pattern)
        recovery = Recovery(way.pattern, way.colouring, self._matrix_of(one, way.D, like))
        return self._solved(A, b, recovery.solve, seeds_of(way, like, backend), way.D, backend)

    def _by_found_pattern(self, A: Operator, b: Array, one: Operator, like: Array, backend: Backend) -> Solution:
        """Solve by the pattern that is known, and by a new one where there is none or it is wrong."""
        known, spent = KNOWN_PATTERNS.get(one._source, b.shape[-1]), 0
        if known is not None:
            first = self._by_pattern(A, b, known, backend)
            if not is_wrong(first):
                return first
            spent = known_products(first)
        search = find_pattern(one, like, backend)
        spent += search.products
        if search.pattern is None:
            return _too_full(b, spent)
        known = KNOWN_PATTERNS.add(one._source, search.pattern)
        return with_products(self.by_search(A, b, search, known, backend), spent)

    def by_search(self, A: Operator, b: Array, search: Search, known: Pattern, backend: Backend) -> Solution:
        """Solve by the entries that a search has found, or else by the pattern that is known since.

        If that is wrong, the columns differ in their units, and are searched again in those of the entries found.
        """
        one, like, spent = A, b, 0
        if A.one is not None:
            one, like = A.one, b[0, ...]
        if search.is_exact:
            solution = self._by_entries(A, b, search, backend)
        else:
            solution = self._by_pattern(A, b, known, backend)
        for _ in range(MOST_SCALED):
            if search.entries is None or not is_wrong(solution):
                break
            spent += most_products(solution)
            search = find_pattern(one, like, backend, scales=search.scales)
            spent += search.products
            if search.pattern is None:
                break
            known = KNOWN_PATTERNS.add(one._source, union(known, search.pattern))
            solution = self._by_pattern(A, b, known, backend)
        return with_products(solution, spent) if spent else solution

    def _by_entries(self, A: Operator, b: Array, search: Search, backend: Backend) -> Solution:
        """Solve by the entries that a search has found."""
        one, like = (A, b) if A.one is None else (A.one, b[0, ...])
        assert search.entries is not None
        D = cheapest_direction(one)
        recovery = Recovery(search.entries.pattern, None, self._matrix_of(one, D, like))
        none = full(like, 0.0, shape=(0, b.shape[-1]))
        solution = self._solved(A, b, partial(recovery.solve_given, search.entries.values), none, D, backend)
        extra = solution.extra or {}
        colours = full(extra["colours"], search.groups)
        return with_choice(solution._replace(extra={**extra, "colours": colours}), Reason.SPARSE_ASKED)

    def _matrix_of(self, A: Operator, D: Operator, like: Array) -> Matrix:
        """Return what is known of the matrix D, which is A or its transpose."""
        xp = array_namespace(like)
        numbers = float(self.damping), eps(xp, like.dtype), finite_max(xp, like.dtype)
        return Matrix(D is not A, A.symmetric, *numbers)

    def _solved(
        self, A: Operator, b: Array, solve: HostSolve, vectors: Array, D: Operator, backend: Backend
    ) -> Solution:
        """Solve on the host by the products of D with some vectors, (k, n), and with a random one."""
        xp, rows = array_namespace(b), b[None, ...] if A.one is None else b
        like, count = rows[0, ...], rows.shape[0]
        # not the vector whose parts are the factors in sums of columns, which a wrong entry of a sum would satisfy
        v = backend.asarray(random_vector(b.shape[-1], 1).copy(), dtype=b.dtype, device=device(b))
        products = products_with(D, xp.concat([vectors, v[None, :]], axis=0), like, backend)
        rhs = xp.concat([rows, *(p[None, ...] for p in A.probes)], axis=0) if A.probes else rows
        found = _on_host(solve, products, v, rhs, count, backend)
        probes = tuple([found.x[count + j, ...] for j in range(len(A.probes))])
        found = found._replace(x=found.x[:count, ...])
        found = found.of_one() if A.one is None else found
        wrong, used = self._is_wrong(A, b, found), vectors.shape[0]
        products = full(found.status, used + 2)
        extra: dict[str, Any] = {
            "condition": found.condition,
            "indefinite": found.indefinite & ~wrong,
            "products": products,
            "colours": full(products, used),
            "fill": found.fill,
        }
        if A.probes:
            extra["probes"] = probes
        solution = Solution(
            xp.where(wrong[..., None], full(b, float("nan")), found.x),
            xp.where(wrong, full(products, int(Status.WRONG_PATTERN)), found.status),
            products,
            xp.where(wrong, full(found.residual, 1.0), found.residual),
            extra,
        )
        return with_choice(solution, Reason.SPARSE_ASKED)

    def _is_wrong(self, A: Operator, b: Array, found: OnHost) -> Array:
        """Return where the pattern is wrong: where a product with v, or with the solution, is not that of A."""
        status, x = found.status, found.x
        residual = b - A(x) - self.damping * x if self.damping else b - A(x)
        far = array_namespace(b).any(~(abs(residual) <= found.allowed), axis=-1)
        wrong: Array = (status == int(Status.CONVERGED)) & far
        return wrong | (status == int(Status.WRONG_PATTERN))


class OnHost(NamedTuple):
    """The answers for the right-hand sides (k, *batch, n), as arrays of the backend. See `Answer`."""

    x: Array
    allowed: Array
    status: Array
    residual: Array
    indefinite: Array
    condition: Array
    fill: Array

    def of_one(self) -> OnHost:
        """Return the answer for the only right-hand side, without its axis."""
        return OnHost._make([*(x[0, ...] for x in self[:-1]), self.fill])


def _on_host(solve: HostSolve, products: Array, v: Array, rhs: Array, count: int, backend: Backend) -> OnHost:
    """Factorise and solve each problem of a batch on the host. rhs: (m, *batch, n), the first `count` have a status."""
    import numpy as np

    xp, batch, n = array_namespace(rhs), tuple(rhs.shape[1:-1]), rhs.shape[-1]
    number, vector = full(rhs, 0.0, shape=(count, *batch)), full(rhs, 0.0, shape=(count, *batch, n))
    codes = full(number, 0, dtype=xp.int32)
    like = (rhs, vector, codes, number, codes != 0, number, number[0, ...])

    def run(*arrays: Array) -> Arrays:
        P, w, R = [np.asarray(backend.to_numpy(x), dtype=float) for x in arrays]
        return tuple(solve_each(solve, P, w, R, count))

    return OnHost._make(backend.loops.on_host(run, like, *map(backend.constant, (products, v, rhs))))


def is_wrong(solution: Solution) -> bool:
    """Return whether the pattern was wrong for a problem."""
    return bool(array_namespace(solution.value).any(solution.status == int(Status.WRONG_PATTERN)))


def with_choice(solution: Solution, reason: Reason) -> Solution:
    """Return the solution of a sparse factorisation with the words for it."""
    extra = solution.extra or {}
    choice = Choice.of(Tried.SPARSE, solution, reason, 0)
    return solution._replace(extra={**extra, "choice": choice._replace(colours=extra["colours"], fill=extra["fill"])})


def most_products(solution: Solution) -> int:
    """Return the most products that a problem took."""
    products = (solution.extra or {})["products"]
    return int(array_namespace(products).max(products))


def with_products(solution: Solution, spent: int) -> Solution:
    """Return the solution with further products counted."""
    extra = solution.extra or {}
    products = extra["products"] + spent
    return with_choice(solution._replace(extra={**extra, "products": products}), Reason.SPARSE_ASKED)


def known_products(solution: Solution) -> int:
    """Return the products of a solve whose problems took them together."""
    return int((solution.extra or {})["colours"].reshape(-1)[0]) + 2


def _too_full(b: Array, spent: int) -> Solution:
    """Return the solution where no pattern was found."""
    xp = array_namespace(b)
    code = full(b, int(Status.WRONG_PATTERN), shape=tuple(b.shape[:-1]), dtype=xp.int32)
    one = full(b, 1.0, shape=tuple(b.shape[:-1]))
    zero, inf = 0.0 * one, full(one, float("inf"))
    extra = {"products": full(code, spent), "colours": 0 * code, "fill": zero, "condition": inf}
    solution = Solution(full(b, float("nan")), code, full(code, spent), one, {**extra, "indefinite": code < 0})
    return with_choice(solution, Reason.SPARSE_ASKED)


def _of_nothing(b: Array) -> Solution:
    """Return the solution of problems without unknowns, or of no problem."""
    xp = array_namespace(b)
    none = full(b, 0, shape=tuple(b.shape[:-1]), dtype=xp.int32)
    zero = xp.astype(none, b.dtype)
    extra = {"products": none, "colours": none, "fill": zero, "condition": zero, "indefinite": none != 0}
    return Solution(b, none, none, zero, extra)
