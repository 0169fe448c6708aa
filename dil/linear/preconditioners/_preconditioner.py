"""The protocol of a preconditioner, and functions that preconditioners share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from dil._base.arrays import array_namespace, full
from dil._base.errors import DTypeError, OptionError, ShapeError
from dil._base.operator import Operator
from dil._base.typing import Array, Loop, Matvec


@runtime_checkable
class Preconditioner(Protocol):
    """An approximation of A^-1. It is prepared anew for each system, so that it belongs to the right A.

    Examples
    --------
    >>> import numpy as np, dil
    >>> class Halve:
    ...     def prepare(self, A, b, /, *, loop):
    ...         return lambda r: 0.5 * r
    >>> solver = dil.linear.CG(preconditioner=Halve())
    >>> int(solver(lambda p: 2.0 * p, np.ones(3)).iterations)
    1
    """

    def prepare(self, A: Operator, b: Array, /, *, loop: Loop) -> Matvec:
        """Return a symmetric positive definite map r -> z with z near A^-1 r; b, r and z: (*batch, n).

        b gives the shape, dtype and device of the vectors. If `prepare` itself multiplies by A, and these products
        must be counted, return a `Prepared`, which holds their number.
        """
        ...


@dataclass(frozen=True)
class Prepared:
    """A preconditioner that is ready for use. It is called as r -> z.

    Attributes
    ----------
    apply : callable
        z = apply(r); r and z: (*batch, n).
    products : int
        The number of products with A that the preparation used, for each problem.

    Examples
    --------
    >>> import dil
    >>> dil.linear.preconditioners.Prepared(lambda r: 0.5 * r)(3.0)
    1.5
    """

    apply: Matvec
    products: int = 0

    def __call__(self, r: Array) -> Array:
        return self.apply(r)


def check_preconditioner(given: object) -> None:
    """Check that a preconditioner can be called or prepared.

    Raises
    ------
    OptionError
        If it can be neither called nor prepared.
    """
    is_class = isinstance(given, type)
    if given is None or (not is_class and (callable(given) or isinstance(given, Preconditioner))):
        return
    hint = f"; did you mean {getattr(given, '__name__', '')}()?" if is_class else ""
    message = f"preconditioner={given!r}; expected a callable r -> z, an object with prepare(A, b, loop=...){hint}"
    raise OptionError(message)


def prepared(given: Preconditioner | Matvec | None, A: Operator, b: Array, loop: Loop) -> Prepared:
    """Return a preconditioner that is ready for use and checks its results. None gives the identity.

    Raises
    ------
    ShapeError, DTypeError
        By the call, if the result of the preconditioner has another shape or dtype than r.
    """
    if given is None:
        return Prepared(lambda r: r)
    apply = given.prepare(A, b, loop=loop) if isinstance(given, Preconditioner) else given
    name = getattr(given, "__name__", type(given).__name__)

    def checked(r: Array) -> Array:
        z = apply(r)
        shape = tuple(getattr(z, "shape", (None,)))
        if shape != tuple(r.shape):
            message = (
                f"the preconditioner {name!r} returned shape {shape}; expected {tuple(r.shape)}, like the residual"
            )
            raise ShapeError(message)
        if z.dtype != r.dtype:
            message = f"the preconditioner {name!r} returned dtype {z.dtype}; expected {r.dtype}, like the residual"
            raise DTypeError(message)
        return z

    return Prepared(checked, getattr(apply, "products", 0))


def is_eager(loop: Loop, like: Array) -> bool:
    """Return whether the loop is Python's, so its body may read arrays. Only such a loop passes the same object."""
    start = full(like, 0, shape=(), dtype=array_namespace(like).int32)
    seen: list[Any] = []

    def body(k: Array) -> Array:
        seen.append(k)
        return k + 1

    loop(lambda k: k < 1, body, start)
    return seen[0] is start


class ColumnState(NamedTuple):
    """The columns computed so far, and their number k."""

    k: Array
    columns: Array


def columns(A: Callable[[Array], Array], vectors: Array, loop: Loop) -> Array:
    """Return the products of A with several vectors, one after the other; vectors and products: (count, *batch, n).

    Preconditioners compute several products only here, so that one product with many vectors can replace this later.
    """
    xp, count = array_namespace(vectors), vectors.shape[0]
    if count == 0 or is_eager(loop, vectors):
        return xp.stack([A(vectors[i, ...]) for i in range(count)]) if count else vectors
    # one compiled loop, because an unrolled program would contain the product `count` times
    index = xp.reshape(xp.arange(count, dtype=xp.int32), (count, *(1,) * (vectors.ndim - 1)))

    def add_column(s: ColumnState) -> ColumnState:
        product = A(xp.take(vectors, s.k[None], axis=0)[0, ...])
        return ColumnState(s.k + 1, xp.where(index == s.k, product[None, ...], s.columns))

    start = ColumnState(full(vectors, 0, shape=(), dtype=xp.int32), xp.zeros_like(vectors))
    filled: ColumnState = loop(lambda s: s.k < count, add_column, start)
    return filled.columns
