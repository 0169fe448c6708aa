"""Incomplete factors of a sparse matrix as a preconditioner."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, eps, finite_max, size
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.options import is_number
from dil._base.typing import Array, Arrays, Loop
from dil._frameworks.protocol import Backend
from dil.linear._found_pattern import find_pattern, is_concrete, products_with
from dil.linear._known_patterns import KNOWN_PATTERNS
from dil.linear._pattern import Pattern, PatternLike, given_pattern, pattern_for
from dil.linear._right_hand_side import backend_of_system
from dil.linear._sparse_factor import Matrix, Recovery, import_linalg, import_sparse, random_vector, unit_of
from dil.linear._way import Way, cheapest_way, seeds_of
from dil.linear.preconditioners._preconditioner import Prepared


@dataclass(frozen=True)
class SparseILU:
    """Solve with incomplete factors of the sparse matrix: those of SuperLU without their small entries.

    Parameters
    ----------
    pattern : sparse array, array of bool, "tridiagonal", int or callable, optional
        Where dF/du may differ from zero, as in `dil.linear.SparseDirect`. By default it is found, once for a function
        and its shapes. A program that is compiled, as under `jax.jit`, needs it.
    drop_tol : float
        The share of a column below which an entry of the factors is dropped.
    fill_factor : float
        The most entries of the factors, in units of those of the matrix.

    Notes
    -----
    The matrix is recovered from its products as in `SparseDirect`, scaled to rows and columns of size one, and
    factorised on the host (Li and Shao 2011). Each use is a solve with both triangles there. A symmetric matrix takes
    pivots on its diagonal, so that its factors stay nearly symmetric, as `dil.linear.CG` needs. A pivot of zero makes
    the result NaN, and the status of the solve NON_FINITE: lower `drop_tol` then. It needs SciPy.

    Raises
    ------
    OptionError
        If an option is out of range, or SciPy is absent; by the solve, if the pattern lacks an entry, or none is found.

    Examples
    --------
    >>> import numpy as np, dil
    >>> def A(p):
    ...     inner = np.pad(p, 1)
    ...     return 2.001 * p - inner[:-2] - inner[2:]
    >>> operator = dil.linear.Operator(A, symmetric=True)
    >>> solver = dil.linear.CG(preconditioner=dil.linear.SparseILU("tridiagonal"))
    >>> int(solver(operator, np.ones(500)).iterations)
    1
    """

    pattern: PatternLike = None
    drop_tol: float = 1e-3
    fill_factor: float = 10.0

    def __post_init__(self) -> None:
        for name, x, least in (("drop_tol", self.drop_tol, 0.0), ("fill_factor", self.fill_factor, 1.0)):
            if not (is_number(x) and least <= x < math.inf):
                message = f"{name}={x!r}; expected a finite number >= {least:g}"
                raise OptionError(message)
        if self.pattern is not None:
            object.__setattr__(self, "pattern", given_pattern(self.pattern))

    def prepare(self, A: Operator, b: Array, /, *, loop: Loop) -> Prepared:
        """Return r -> z, the solution with the incomplete factors."""
        backend = backend_of_system(b, "dil.linear.SparseILU")
        import_sparse()
        if size(b.shape) == 0:
            return Prepared(lambda r: r)
        known, spent = self._known(A, b, backend), 0
        if known is not None:
            found = self._prepared(A, b, known, backend)
            if self.pattern is not None or not found.factors.lacks_an_entry(*found.numbers(backend)):
                return Prepared(found.applied(backend), found.products)
            spent = found.products
        search = find_pattern(A, b, backend)
        spent += search.products
        if search.pattern is None:
            message = f"SparseILU finds no sparse pattern in {search.products} products: take another preconditioner"
            raise OptionError(message)
        found = self._prepared(A, b, KNOWN_PATTERNS.add(A._source, search.pattern), backend)
        return Prepared(found.applied(backend), spent + found.products)

    def _known(self, A: Operator, b: Array, backend: Backend) -> Pattern | None:
        """Return the pattern that was given or found before."""
        if self.pattern is not None:
            return pattern_for(self.pattern, b.shape[-1])
        if not is_concrete(backend, b):
            message = (
                "a program that is compiled cannot search for the pattern of dF/du: give it, as in "
                'SparseILU("tridiagonal") or SparseILU(pattern) with a SciPy sparse array'
            )
            raise OptionError(message)
        return KNOWN_PATTERNS.get(A._source, b.shape[-1])

    def _prepared(self, A: Operator, b: Array, pattern: Pattern, backend: Backend) -> Found:
        """Return the products that tell the matrix, and how it follows from them."""
        xp, way = array_namespace(b), cheapest_way(A, pattern)
        like = b[(*(0,) * (b.ndim - 1), ...)]
        v = backend.asarray(random_vector(b.shape[-1], 1).copy(), dtype=b.dtype, device=device(b))
        vectors = xp.concat([seeds_of(way, like, backend), v[None, :]], axis=0)
        of = Matrix(way.D is not A, A.symmetric, 0.0, eps(xp, b.dtype), finite_max(xp, b.dtype))
        factors = IncompleteFactors(way, of, float(self.drop_tol), float(self.fill_factor))
        return Found(backend.constant(products_with(way.D, vectors, b, backend)), backend.constant(v), factors)


class Found(NamedTuple):
    """The products with the seeds and with v, (k + 1, *batch, n), and the factors that follow from them."""

    images: Array
    v: Array
    factors: IncompleteFactors

    @property
    def products(self) -> int:
        """The number of products."""
        return int(self.images.shape[0])

    def numbers(self, backend: Backend) -> tuple[Any, Any]:
        """Return the products and v on the host."""
        import numpy as np

        P, v = [np.asarray(backend.to_numpy(x), dtype=float) for x in (self.images, self.v)]
        return P, v

    def applied(self, backend: Backend) -> Any:
        """Return the preconditioner r -> z."""
        import numpy as np

        def run(*arrays: Array) -> Arrays:
            P, v, R = [np.asarray(backend.to_numpy(x), dtype=float) for x in arrays]
            return (self.factors.solved(P, v, R),)

        def apply(r: Array) -> Array:
            return backend.loops.on_host(run, (r,), self.images, self.v, backend.constant(r))[0]

        return apply


@dataclass(eq=False)
class IncompleteFactors:
    """The incomplete factors of the matrices of a batch on the host, kept for the products that they were made of."""

    way: Way
    of: Matrix
    drop_tol: float
    fill_factor: float
    _kept: list[tuple[Any, list[Incomplete | None]]] = field(default_factory=list)

    def lacks_an_entry(self, products: Any, v: Any) -> bool:
        """Return whether the product of a matrix with v is another one than that of its entries."""
        import numpy as np

        return any(self._entries(products[:, *i], v) is None for i in np.ndindex(*products.shape[1:-1]))

    def solved(self, products: Any, v: Any, r: Any) -> Any:
        """Return the solutions of r: (*batch, n), and NaN for a matrix whose factors have a pivot of zero."""
        import numpy as np

        z = np.full(r.shape, np.nan)
        for i, factor in zip(np.ndindex(*r.shape[:-1]), self._factors(products, v), strict=True):
            if factor is not None and np.isfinite(r[i]).all():
                z[i] = factor.solve(r[i], transposed=self.of.transposed)
        return z

    def _factors(self, products: Any, v: Any) -> list[Incomplete | None]:
        """Return the factors of each problem, made once for the same products."""
        import numpy as np

        for known, factors in self._kept[:]:
            if np.array_equal(known, products):
                return factors
        new = [self._factorised(products[:, *i], v) for i in np.ndindex(*products.shape[1:-1])]
        self._kept[:] = [(products.copy(), new)]
        return new

    def _entries(self, products: Any, v: Any) -> tuple[Recovery, Any, float] | None:
        """Return the entries of D / unit; None if the pattern lacks one. Of what is not finite, there are none."""
        import numpy as np

        recovery, unit = Recovery(self.way.pattern, self.way.colouring, self.of), unit_of(products)
        if unit is None:
            return recovery, np.zeros(self.way.pattern.rows.shape), 1.0
        data = np.take(products[:-1].reshape(-1) / unit, self.way.colouring.places)
        lacks = recovery.lacks_an_entry(data, products[-1] / unit, v)
        return None if lacks else (recovery, data, unit)

    def _factorised(self, products: Any, v: Any) -> Incomplete | None:
        """Return the incomplete factors of a matrix, or None if a pivot is zero."""
        found = self._entries(products, v)
        if found is None:
            message = "the pattern of SparseILU lacks an entry of dF/du: give one that has it, or none, to find it"
            raise OptionError(message)
        recovery, data, unit = found
        scaled = recovery.scaled(data)
        if scaled is None:
            return None
        options: dict[str, Any] = {"drop_tol": self.drop_tol, "fill_factor": self.fill_factor}
        if self.of.symmetric:
            options |= {"diag_pivot_thresh": 0.0, "permc_spec": "MMD_AT_PLUS_A", "options": {"SymmetricMode": True}}
        try:
            lu = import_linalg().spilu(scaled.matrix, **options)
        except RuntimeError as error:
            if "singular" not in str(error):
                raise
            return None
        return Incomplete(lu, scaled.row_scales, scaled.column_scales, unit)


class Incomplete(NamedTuple):
    """The incomplete factors of a scaled matrix D / unit."""

    lu: Any
    row_scales: Any
    column_scales: Any
    unit: float

    def solve(self, r: Any, *, transposed: bool) -> Any:
        """Return the solution of D z = r, or of D^T z = r."""
        left, right = self.row_scales, self.column_scales
        if transposed:
            left, right = right, left
        return right * self.lu.solve(left * r, trans="T" if transposed else "N") / self.unit
