"""The matrix of a linear system, given by its products with vectors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from dil._base.arrays import eye
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.given_matrix import GivenMatrix
from dil._base.quasi_newton import Pairs
from dil._base.quasi_newton import shifted as shifted_pairs
from dil._base.rows import Rows
from dil._base.small_inverse import KnownInverse
from dil._base.typing import Array, Arrays, Matvec


class Work(NamedTuple):
    """How much work one product with a matrix is, at least."""

    made: int
    """The intermediate numbers that a product makes."""
    read: int
    """The numbers of the arrays that a product reads, its vector apart."""


class Source(NamedTuple):
    """What tells one matrix from those of other functions: what is known of it serves the next with the same source."""

    fn: object
    """The code of F, or F itself."""
    key: Hashable
    """The structure of the unknown."""


class MadeWhenUsed:
    """A product that is made when it is first used, because most callers never use it.

    It must not be made within a map or a loop, which would hold it. So `Operator.T` makes it first.
    """

    def __init__(self, make: Callable[[], Matvec]) -> None:
        self.make = make
        self.made: Matvec | None = None

    def ready(self) -> Matvec:
        """Return the product."""
        if self.made is None:
            self.made = self.make()
        return self.made

    def __call__(self, p: Array) -> Array:
        return self.ready()(p)


def ready(product: Matvec | None) -> Matvec | None:
    """Return a product that is made."""
    return product.ready() if isinstance(product, MadeWhenUsed) else product


@dataclass(frozen=True)
class Operator:
    """A square matrix A for each problem of a batch, given by its products with vectors. `A(p)` returns A p.

    Attributes
    ----------
    matvec : callable
        `matvec(p)` returns A p. Both p and A p have shape (*batch, n) and one dtype.
    rmatvec : callable, optional
        `rmatvec(p)` returns A^T p.
    symmetric : bool
        Whether A is known to be symmetric. Its transpose then needs no `rmatvec`.
    pairs : Pairs, optional
        The pairs (s, y) of a quasi-Newton forward solver. A preconditioner can approximate A^-1 with them.
    transposed : bool
        Whether A is the transpose of a layer's dF/du, as in a pullback, and not dF/du, as in a pushforward.
    probes : tuple of arrays
        Further right-hand sides, (*batch, n). A solver with a factorisation, for which they cost next to nothing,
        returns their solutions as `extra["probes"]`. A layer checks its solution with them.
    one : Operator, optional
        Given if the first axis of the vectors, (k, *batch, n), holds k right-hand sides of one matrix. `one` is that
        matrix, for vectors (*batch, n).
    matrix : array, optional
        A itself, (*batch, n, n), where it is known. A solver with a factorisation then needs no products.
    work : callable, optional
        `work()` returns how many numbers a product makes and reads, (made, read). Solvers compare it with the work of
        a factorisation, and bound by it the memory for products that run at once. Without it, they know the size of
        the vectors alone.

    Examples
    --------
    >>> import numpy as np, dil
    >>> M = np.asarray([[1.0, 2.0], [0.0, 1.0]])
    >>> A = dil.linear.Operator(lambda p: M @ p, lambda p: M.T @ p)
    >>> A.T(np.asarray([1.0, 1.0]))
    array([1., 3.])
    """

    matvec: Matvec
    rmatvec: Matvec | None = None
    symmetric: bool = False
    pairs: Pairs | None = field(default=None, repr=False)
    transposed: bool = False
    probes: Arrays = field(default=(), repr=False)
    one: Operator | None = field(default=None, repr=False)
    matrix: Array | None = field(default=None, repr=False)
    work: Callable[[], tuple[int, int]] | None = field(default=None, repr=False)
    _expansion: Callable[[], object] | None = field(default=None, repr=False)
    """Returns what the function that A is the Hessian of says about its structure, for a solver that knows it."""
    _pull: Callable[..., Arrays] | None = field(default=None, repr=False)
    """The pullback of F(u, *floats) whose dF/du is A or its transpose, if it is at hand."""
    _inverse: KnownInverse | None = field(default=None, repr=False)
    """The inverse of A, if A is one small matrix of which it is known."""
    _source: Source | None = field(default=None, repr=False)
    """What the matrix is of, if it is dF/du of a layer or its transpose."""
    _rows: Callable[[Rows], Operator] | None = field(default=None, repr=False)
    """Returns A of some problems of the batch, for their vectors alone. It is known only if F can be recorded for them.

    A function need not be the same for some problems as for all: `matrix_of_part` looks.
    """
    _given: GivenMatrix | None = field(default=None, repr=False)
    """A itself, if the user gives it on the host."""

    def __call__(self, p: Array) -> Array:
        """Return A p.

        Raises
        ------
        ShapeError
            If the product is not an array of the shape of p. Broadcasting would silently solve another system.
        DTypeError
            If the product has another dtype than p. The tolerances are those of the dtype of p.
        """
        Ap = self.matvec(p)
        if getattr(Ap, "shape", None) != p.shape:
            found = tuple(Ap.shape) if hasattr(Ap, "shape") else f"{type(Ap).__name__} without a shape"
            message = f"a product with the matrix has shape {found}; expected {tuple(p.shape)}, like the vector"
            raise ShapeError(message)
        if Ap.dtype != p.dtype:
            message = f"a product with the matrix has dtype {Ap.dtype}; expected {p.dtype}, like the vector: cast it"
            raise DTypeError(message)
        return Ap

    @property
    def T(self) -> Operator:
        """The transpose of A.

        Raises
        ------
        OptionError
            If A is not symmetric and has no `rmatvec`.
        """
        if self.symmetric:
            # with its inverse, which is symmetric
            return replace(self, transposed=not self.transposed, probes=(), _rows=_then(self._rows, lambda A: A.T))
        product = ready(self.rmatvec)
        if product is None:
            message = (
                "products with the transpose are needed, but only those with the matrix are known; pass "
                "dil.linear.Operator(matvec, rmatvec), or Operator(matvec, symmetric=True) if it is symmetric"
            )
            raise OptionError(message)
        one = None if self.one is None else self.one.T
        matrix = None if self.matrix is None else self.matrix.mT
        return Operator(
            product,
            self.matvec,
            transposed=not self.transposed,
            one=one,
            matrix=matrix,
            work=self.work,
            _pull=self._pull,
            _source=self._source,
            _rows=_then(self._rows, lambda A: A.T),
            _given=None if self._given is None else self._given.T,
        )


def matrix_operator(matrix: Array, *, symmetric: bool = False) -> Operator:
    """Return the operator of a dense matrix, (*batch, n, n)."""

    def product(A: Array, p: Array) -> Array:
        # a product of many matrices of one number is slow in most libraries
        return A[..., 0] * p if A.shape[-1] == 1 else (A @ p[..., None])[..., 0]

    return Operator(lambda p: product(matrix, p), lambda p: product(matrix.mT, p), symmetric, matrix=matrix)


def as_operator(matvec: Matvec) -> Operator:
    """Return an operator unchanged, and wrap a plain function p -> A p in an operator."""
    if isinstance(matvec, Operator):
        return matvec
    if not callable(matvec):
        message = (
            f"A has the type {type(matvec).__name__}; expected a function p -> A p, or a dil.linear.Operator; for a "
            "matrix, lambda p: matrix @ p"
        )
        raise OptionError(message)
    return Operator(matvec)


def shifted(matvec: Matvec, shift: float) -> Operator:
    """Return A + shift I, with the transpose, symmetry and pairs of A."""
    A = as_operator(matvec)
    if shift == 0:
        return A
    rproduct, pairs, matrix = ready(A.rmatvec), A.pairs, A.matrix
    return replace(
        A,
        matvec=lambda p: A(p) + shift * p,
        rmatvec=None if rproduct is None else lambda p: rproduct(p) + shift * p,
        pairs=None if pairs is None else shifted_pairs(pairs, shift),
        matrix=None if matrix is None else matrix + shift * eye(matrix.shape[-1], matrix),
        _expansion=None,
        _inverse=None,
        _rows=_then(A._rows, lambda part: shifted(part, shift)),
        _given=None if A._given is None else A._given.shifted(shift),
    )


def _then(
    rows: Callable[[Rows], Operator] | None, fn: Callable[[Operator], Operator]
) -> Callable[[Rows], Operator] | None:
    """Return the function that applies fn to A of some problems, if that is known."""
    return None if rows is None else lambda some: fn(rows(some))
