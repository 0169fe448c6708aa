"""A sparse matrix on the host: recovered from its products, compared with a random one, factorised and solved with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from dil._base.errors import OptionError
from dil._base.small_inverse import residual_slack
from dil._base.status import Status
from dil.linear._colouring import Colouring
from dil.linear._logarithmic_scales import logarithmic_scales
from dil.linear._pattern import Pattern

THRESHOLD = 0.01
"""A pivot on the diagonal is taken if it is at least this share of the largest in its column."""
REFINED = 4
"""A residual above this many eps of its terms is refined."""
ROWS = 2**10
"""And so is one above this many eps of the terms of its row, whose unit may be small in all scales."""
PANEL, PANEL_BY_DIAGONAL = 8, 4
"""The columns that SuperLU works on at once. Its own number, for larger blocks, takes 1.5 times as long on a grid."""
NEAR = 2.0**-10
"""The largest difference of an entry of two scaled matrices, times the condition number, at which the factors of one
serve both: about the factor by which each step of refinement shrinks the residual."""
MOST_REFINED, SHRINKS = 4, 2.0**-7
"""The steps of refinement by the factors of a matrix near by, and how each must shrink the residual to go on."""
MOST_KEPT = 2**23
"""The most entries of factors that are kept for the next solve: 100 MiB."""
WORST = 1 / 32
"""The largest condition number of a matrix that is not singular, in units of 1 / eps."""


class Matrix(NamedTuple):
    """What is known of a matrix D, whose entries are to be found, beside its products."""

    transposed: bool
    """Whether D is the transpose of the matrix A of the system."""
    symmetric: bool
    """Whether A is known to be symmetric."""
    damping: float
    machine_eps: float
    """That of the dtype of the products."""
    largest: float
    """The largest finite number of the dtype of the answer."""

    @property
    def tolerance(self) -> float:
        """The largest difference of two products, beside their terms, that counts as rounding."""
        return float(self.machine_eps ** (2 / 3))


HostSolve: TypeAlias = Callable[[Any, Any, Any, int], "Answer"]
"""`solve(products, v, rhs, count)`: return the solutions for (m, n) right-hand sides, of which the first `count` decide
on the status. products: those of D with some vectors, and the last with v, (k + 1, n)."""


@dataclass(frozen=True)
class Recovery:
    """How a matrix D, which is A or its transpose, follows from its products with the seeds of a colouring."""

    pattern: Pattern
    """The pattern of D."""
    colouring: Colouring | None
    """None where the entries come from elsewhere."""
    of: Matrix

    def solve(self, products: Any, v: Any, rhs: Any, count: int) -> Answer:
        """Return the solutions by the products with the seeds and with v; see `HostSolve`."""
        import numpy as np

        unit = unit_of(products)
        if unit is None:
            return no_answer(rhs, count, Status.NON_FINITE)
        products = products / unit
        assert self.colouring is not None
        data = np.take(products[:-1].reshape(-1), self.colouring.places)
        return self.solve_entries(data, products[-1], unit, v, rhs, count)

    def solve_given(self, entries: Any, products: Any, v: Any, rhs: Any, count: int) -> Answer:
        """Return the solutions by the entries of D, and its product with v, which is the only one."""
        import numpy as np

        unit = unit_of(products)
        if unit is None:
            return no_answer(rhs, count, Status.NON_FINITE)
        unit = max(unit, float(np.abs(entries).max(initial=0.0)))
        return self.solve_entries(entries / unit, products[-1] / unit, unit, v, rhs, count)

    def solve_entries(self, data: Any, product: Any, unit: float, v: Any, rhs: Any, count: int) -> Answer:
        """Return the solutions by the entries of D / unit, and its product with v."""
        if self.lacks_an_entry(data, product, v):
            return no_answer(rhs, count, Status.WRONG_PATTERN)
        places = places_of(self.pattern)
        data[places.diagonal] += self.of.damping / unit
        last = LAST_FACTOR.take(self, data, unit)
        if last is None:
            scaled = self.scaled(data)
            if scaled is None:
                return no_answer(rhs, count, Status.SINGULAR)
            last = LastScaled(scaled, unit)
        answer = last.answer(rhs, count)
        if (answer.status == int(Status.SINGULAR)).any():
            # the largest entry of a row may be that of an unknown in a tiny unit, and hides the others
            other = LastScaled(self.rescaled(data), unit)
            again = other.answer(rhs, count)
            if not (again.status == int(Status.SINGULAR)).any():
                last, answer = other, again
        LAST_FACTOR.keep(self, last)
        return answer

    def scaled(self, data: Any) -> Scaled | None:
        """Return the matrix of these entries with rows and columns of size one, or None if one of them is zero."""
        row_sizes, column_sizes = self._scales(data)
        if not (row_sizes.min() > 0 and column_sizes.min() > 0):
            return None
        return Scaled(self, data, 1.0 / row_sizes, 1.0 / column_sizes)

    def rescaled(self, data: Any) -> Scaled:
        """Return the matrix of these entries in scales that do not depend on the units of rows and columns."""
        import numpy as np

        places = places_of(self.pattern)
        row_sizes, column_sizes = logarithmic_scales(places.rows, places.columns, np.abs(data), self.pattern.n)
        return Scaled(self, data, 1.0 / row_sizes, 1.0 / column_sizes)

    def lacks_an_entry(self, data: Any, product: Any, v: Any) -> bool:
        """Return whether D v is another vector than that of the matrix recovered, in a row by more than rounding."""
        import numpy as np

        D = self._matrix(data)
        gap, terms = np.abs(product - D @ v), abs(D) @ np.abs(v)
        return bool(np.any(gap > self.of.tolerance * terms))

    def _matrix(self, data: Any) -> Any:
        places = places_of(self.pattern)
        return import_sparse().csc_array((data, places.rows, places.starts), shape=(self.pattern.n,) * 2)

    def _scales(self, data: Any) -> tuple[Any, Any]:
        """Return what to divide the rows and the columns by: powers of two, which round nothing, or zero.

        These are the sizes of the rows of A, and those of its columns then. For a symmetric matrix they are the roots
        of the diagonal, and those of the rows then, as in `equilibrate`.
        """
        import numpy as np

        places, sizes = places_of(self.pattern), np.abs(data)
        if self.of.symmetric:
            roots = np.sqrt(sizes[places.diagonal])
            roots = _power_of_two(np.where(roots > 0, roots, 1.0))
            scaled = sizes / roots[places.rows] / roots[places.columns]
            both = roots * _power_of_two(np.sqrt(np.maximum.reduceat(scaled[places.by_row], places.row_starts)))
            return both, both

        def by_row(sizes: Any) -> Any:
            return _power_of_two(np.maximum.reduceat(sizes[places.by_row], places.row_starts))

        def by_column(sizes: Any) -> Any:
            return _power_of_two(np.maximum.reduceat(sizes, places.starts[:-1]))

        if self.of.transposed:
            columns = by_column(sizes)
            return by_row(sizes / np.where(columns > 0, columns, 1.0)[places.columns]), columns
        rows = by_row(sizes)
        return rows, by_column(sizes / np.where(rows > 0, rows, 1.0)[places.rows])


class Places(NamedTuple):
    """Where the entries of a pattern are, as arrays."""

    rows: Any
    columns: Any
    starts: Any
    """Where each column begins, (n + 1,)."""
    by_row: Any
    """The entries in the order of their rows."""
    row_starts: Any
    """Where each row begins among them, (n,)."""
    diagonal: Any


@lru_cache(maxsize=8)
def places_of(pattern: Pattern) -> Places:
    """Return where the entries of a pattern are. Each row and column has one: that of the diagonal."""
    import numpy as np

    rows, columns = pattern.rows, pattern.columns
    by_row = np.argsort(rows, kind="stable")
    row_starts = np.searchsorted(rows[by_row], np.arange(pattern.n))
    return Places(rows, columns, pattern.starts, by_row, row_starts, np.flatnonzero(rows == columns))


def unit_of(products: Any) -> float | None:
    """Return what to divide the products by, or None if one is not finite."""
    import numpy as np

    largest = float(np.abs(products).max())
    return (largest or 1.0) if largest < np.inf else None


def solve_each(solve: Callable[[Any, Any, Any, int], Answer], products: Any, v: Any, rhs: Any, count: int) -> Answer:
    """Return the solutions of each problem of a batch: as `solve`, with the axes of the batch before the last."""
    import numpy as np

    batch = rhs.shape[1:-1]
    found = [solve(products[:, *i], v, rhs[:, *i], count) for i in np.ndindex(*batch)]
    *rows, fill = zip(*found, strict=True)
    each = [np.stack(x, axis=1).reshape(-1, *batch, *x[0].shape[1:]) for x in rows]
    return Answer._make([*each, np.stack(fill).reshape(batch)])


class Answer(NamedTuple):
    """The solutions of one matrix on the host."""

    x: Any
    """(m, n)."""
    allowed: Any
    """The largest b - A x that rounding explains, (count, n)."""
    status: Any
    """(count,)."""
    residual: Any
    indefinite: Any
    condition: Any
    fill: Any
    """The entries of the factors beside those of the matrix that are not zero."""


class Found(NamedTuple):
    """The solutions of a scaled matrix."""

    y: Any
    solved: Any
    residual: Any
    allowed: Any
    """The residual that rounding explains, by the terms of each row or of those it shares unknowns with, (count, n)."""
    indefinite: Any
    condition: Any
    fill: float


class Side(NamedTuple):
    """The matrix of a system, which is D or its transpose, and its norm."""

    A: Any
    norm: float
    transposed: bool


class Factor(NamedTuple):
    """The factors of a matrix."""

    lu: Any
    indefinite: bool
    """Whether they say that a symmetric matrix is not positive definite."""
    condition: float


class LastScaled(NamedTuple):
    """A scaled matrix with its factors, and the unit of its entries."""

    scaled: Scaled
    unit: float

    def answer(self, rhs: Any, count: int) -> Answer:
        """Return the solutions for (m, n) right-hand sides, of which the first `count` decide on the status."""
        return self.scaled.answer(rhs, count, self.unit, transposed=self.scaled.recovery.of.transposed)


class LastFactor:
    """The last factors, for the next solve with nearly the same matrix: the next step of Newton, or a backward pass.

    They belong to one solve at a time, and no more than `MOST_KEPT` numbers are held.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Recovery, LastScaled]] = []

    def take(self, recovery: Recovery, data: Any, unit: float) -> LastScaled | None:
        """Return D = unit data in the scales of a matrix near it, with the factors of that, or None. None are kept."""
        import numpy as np

        try:
            owner, last = self._kept.pop()  # at once, so that no other thread has them too
        except IndexError:
            return None
        scaled, factor = last.scaled, last.scaled.factor
        if factor is None or owner.pattern != recovery.pattern or owner.of.symmetric != recovery.of.symmetric:
            return None
        new = Scaled(recovery, data * (unit / last.unit), scaled.row_scales, scaled.column_scales, factor)
        gap = np.abs(new.matrix.data - scaled.matrix.data).max() * factor.condition
        return LastScaled(new, last.unit) if gap <= NEAR else None  # False for NaN

    def keep(self, recovery: Recovery, last: LastScaled) -> None:
        """Keep the factors of the last solve."""
        factor = last.scaled.factor
        if factor is not None and factor.lu.nnz <= MOST_KEPT:
            self._kept[:] = [(recovery, last)]


LAST_FACTOR = LastFactor()


class Scaled:
    """The matrix D with rows and columns of size one, and its factors, which serve the transpose too."""

    def __init__(
        self, recovery: Recovery, data: Any, row_scales: Any, column_scales: Any, near: Factor | None = None
    ) -> None:
        """Scale the matrix. `near` are factors of a matrix near it, in the same scales."""
        places = places_of(recovery.pattern)
        self.recovery, self.row_scales, self.column_scales = recovery, row_scales, column_scales
        self.matrix = recovery._matrix(data * row_scales[places.rows] * column_scales[places.columns])
        self.structure_is_symmetric = recovery.pattern == recovery.pattern.T
        self._factors: dict[bool, Any] = {}
        self.factor = near
        """The factors of the last solve, if they served."""

    def answer(self, rhs: Any, count: int, unit: float, *, transposed: bool) -> Answer:
        """Return the solutions for (m, n) right-hand sides of D, or of its transpose, in units of `unit`."""
        import numpy as np

        largest = self.recovery.of.largest
        left, right = self.row_scales, self.column_scales
        if transposed:
            left, right = right, left
        sizes = np.abs(rhs).max(axis=-1, keepdims=True)
        finite = sizes < np.inf
        known = np.where(finite, sizes, 0.0)
        b = left * (np.where(finite, rhs, 0.0) / np.where(known > 0, known, 1.0))
        found = self.solve(b, count, transposed=transposed)
        x = right * found.y * (known / unit)
        zero = sizes[:count, 0] == 0
        status = np.where(zero | found.solved, int(Status.CONVERGED), int(Status.SINGULAR))
        fits = finite & (np.abs(x).max(axis=-1, keepdims=True) <= largest)
        status = np.where((zero | ~found.solved | fits[:count, 0]) & finite[:count, 0], status, int(Status.NON_FINITE))
        allowed = np.where(zero[:, None], np.inf, found.allowed / left * known[:count])
        return Answer(
            np.where(fits, x, 0.0),
            np.where(allowed <= largest, allowed, np.inf),
            status,
            np.where(zero, 0.0, found.residual),
            found.indefinite & found.solved & ~zero,
            np.where(found.condition <= largest, found.condition, np.inf),
            found.fill,
        )

    def solve(self, b: Any, count: int, *, transposed: bool) -> Found:
        """Return the solutions for b: (m, n).

        One more right-hand side, a random one, begins an inverse iteration, which tells the condition number.
        """
        import numpy as np

        n = b.shape[-1]
        A = self.matrix.T if transposed else self.matrix
        system = Side(A, (abs(A) @ np.ones(n)).max(), transposed)
        rhs = np.concatenate([b, random_vector(n)[None]])
        near, self.factor = self.factor, None
        if near is not None:
            refined = self._solved(near.lu, rhs, count, system, most_refined=MOST_REFINED)
            if refined.solved.all():
                self.factor = near
                return refined._replace(indefinite=np.full(count, near.indefinite))
        indefinite, found, factor = False, None, None
        if self.structure_is_symmetric or self._has_large_diagonal():
            # pivots on the diagonal, by an order for symmetric patterns, fill the factors half as much
            factor = self._factorised(by_diagonal=True)
            if self.recovery.of.symmetric:
                indefinite = factor is None or not _is_definite(factor)
            found = None if factor is None else self._solved(factor, rhs, count, system)
        if found is None or not found.solved.all():
            factor = self._factorised(by_diagonal=False)
            found = _singular(b, count) if factor is None else self._solved(factor, rhs, count, system)
        if factor is not None and found.solved.all():
            self.factor = Factor(factor, indefinite, float(found.condition.max()))
        return found._replace(indefinite=np.full(count, indefinite))

    def _has_large_diagonal(self) -> bool:
        """Return whether the diagonal offers a pivot in each column, as in most differential equations."""
        import numpy as np

        return bool(np.all(np.abs(self.matrix.data[places_of(self.recovery.pattern).diagonal]) >= THRESHOLD))

    def _factorised(self, *, by_diagonal: bool) -> Any:
        """Return the factors, made once, or None if a pivot is zero."""
        if by_diagonal not in self._factors:
            self._factors[by_diagonal] = self._factors_now(by_diagonal=by_diagonal)
        return self._factors[by_diagonal]

    def _factors_now(self, *, by_diagonal: bool) -> Any:
        """Return the factors, or None if a pivot is zero."""
        import numpy as np

        options: dict[str, Any] = {"panel_size": PANEL}
        if by_diagonal:
            threshold = 0.0 if self.recovery.of.symmetric else THRESHOLD
            options = {"diag_pivot_thresh": threshold, "options": {"SymmetricMode": True}}
            options |= {"permc_spec": "MMD_AT_PLUS_A", "panel_size": PANEL_BY_DIAGONAL}
        matrix = self.matrix
        if not np.all(matrix.data):
            matrix = matrix.copy()  # what another matrix has, whose pattern serves this one too, would fill the factors
            matrix.eliminate_zeros()
        try:
            return import_linalg().splu(matrix, **options)
        except RuntimeError as error:
            if "singular" not in str(error):
                raise
            return None

    def _solved(self, factor: Any, rhs: Any, count: int, system: Side, most_refined: int = 1) -> Found:
        """Return the solutions with some steps of refinement, where a residual is above rounding."""
        import numpy as np

        A, norm_A, transposed = system
        trans, back_trans = ("T", "N") if transposed else ("N", "T")
        machine, sizes = float(np.finfo(float).eps), abs(A)
        slack = residual_slack(machine, self._n)

        def terms_of_rows(y: Any) -> Any:
            return (sizes @ np.abs(y[:count]).T).T + np.abs(rhs[:count])

        with np.errstate(all="ignore"):  # of a matrix that is singular to rounding
            y = factor.solve(rhs.T, trans=trans).T
            r, of_rows = rhs - (A @ y.T).T, terms_of_rows(y)
            # pivots on the diagonal can lose some digits, which a step of refinement brings back
            for _ in range(most_refined):
                before = _sizes(r)
                small = np.all(before <= REFINED * machine * (norm_A * _sizes(y) + _sizes(rhs)))
                if small and np.all(np.abs(r[:count]) <= ROWS * machine * of_rows):
                    break
                y = y + factor.solve(r.T, trans=trans).T
                r, of_rows = rhs - (A @ y.T).T, terms_of_rows(y)
                if most_refined > 1 and not np.all(_sizes(r) <= SHRINKS * before):
                    break
            length, size = _sizes(y), _sizes(rhs)
            terms = norm_A * length + size
            of_b = length / np.where(size > 0, size, 1.0)
            # the dense solver looks at A^-1 e alone, which shows a null vector of many entries too small by sqrt(n)
            y_e = y[-1] / np.linalg.norm(y[-1])
            back = np.linalg.norm(factor.solve(y_e, trans=back_trans))
            condition = norm_A * np.maximum(of_b[:count], back)
            accurate = _sizes(r) <= slack * terms
            residual = _sizes(r) / np.where(size > 0, size, 1.0)
            # an unknown that is zero by symmetry has the rounding of the terms of its equations
            around = (sizes @ (np.abs(y[:count]).T + sizes.T @ of_rows.T)).T
            of_unknowns = residual_slack(self.recovery.of.machine_eps, self._n) * around
            allowed = 2 * np.abs(r[:count]) + np.maximum(self.recovery.of.tolerance * of_rows, of_unknowns)
        solved = accurate[:count] & (condition < WORST / self.recovery.of.machine_eps)
        residual = np.where(np.isfinite(residual), residual, 1.0)[:count]
        return Found(
            y[:-1], solved, residual, allowed, None, condition, factor.nnz / np.count_nonzero(self.matrix.data)
        )

    @property
    def _n(self) -> int:
        return self.recovery.pattern.n


def _is_definite(factor: Any) -> bool:
    """Return whether the pivots say that a symmetric matrix is positive definite: all lie on the diagonal, all are > 0.

    The pivots are quotients of leading minors, whose signs no positive scale of a row or column changes (Sylvester's
    criterion; Golub and Van Loan 2013, section 4.2).
    """
    import numpy as np

    return bool(np.array_equal(factor.perm_r, factor.perm_c) and np.all(factor.U.diagonal() > 0))


def _sizes(rows: Any) -> Any:
    import numpy as np

    return np.abs(rows).max(axis=-1)


def _power_of_two(x: Any) -> Any:
    import numpy as np

    return np.where(x > 0, np.ldexp(1.0, np.frexp(x)[1]), 0.0)


def _singular(b: Any, count: int) -> Found:
    import numpy as np

    inf = np.full(count, np.inf)
    return Found(np.zeros(b.shape), inf < 0, np.ones(count), np.zeros((count, b.shape[-1])), None, inf, 0.0)


def no_answer(rhs: Any, count: int, status: Status) -> Answer:
    """Return what stands for a solution: NaN where the pattern is wrong, else zero, as from other solvers."""
    import numpy as np

    x = np.full(rhs.shape, np.nan if status is Status.WRONG_PATTERN else 0.0)
    codes = np.full(count, int(status))
    if status is Status.SINGULAR:  # of zero, zero is a solution
        codes = np.where(np.any(rhs[:count] != 0, axis=-1), codes, int(Status.CONVERGED))
        codes = np.where(np.all(np.isfinite(rhs[:count]), axis=-1), codes, int(Status.NON_FINITE))
    inf = np.full(count, np.inf)
    return Answer(x, np.full((count, rhs.shape[-1]), np.inf), codes, np.ones(count), inf < 0, inf, 0.0)


@lru_cache(maxsize=8)
def random_vector(n: int, seed: int = 0) -> Any:
    """Return n numbers of random sign between 1/2 and 1 in size, the same in every run."""
    import numpy as np

    draw = np.random.default_rng(seed)
    return draw.uniform(0.5, 1.0, n) * draw.choice([-1.0, 1.0], n)


def import_sparse() -> Any:
    """Return `scipy.sparse`."""
    try:
        import scipy.sparse
    except ImportError as error:
        message = f"dil.linear.SparseDirect needs SciPy, which cannot be imported ({error}); pip install scipy"
        raise OptionError(message) from error
    return scipy.sparse


def import_linalg() -> Any:
    """Return `scipy.sparse.linalg`."""
    import_sparse()
    import scipy.sparse.linalg

    return scipy.sparse.linalg
