"""What a preconditioned solver asks of a preconditioner, and what preconditioners are built from."""

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
    """An approximation of A^-1 that is prepared anew for each system, so that it holds under differentiation too."""

    def prepare(self, A: Operator, b: Array, /, *, loop: Loop) -> Matvec:
        """Return r -> z, near A^-1 r and symmetric positive definite; b, r and z: (*batch, n).

        b says what vectors are like. Return a `Prepared` to have the products counted that the preparation took.
        """
        ...


@dataclass(frozen=True)
class Prepared:
    """A preconditioner ready for use, called as r -> z.

    Attributes
    ----------
    apply : callable
        z = apply(r); r and z: (*batch, n).
    products : int
        Products with A, for each problem, that it took to prepare.
    """

    apply: Matvec
    products: int = 0

    def __call__(self, r: Array) -> Array:
        return self.apply(r)


def check_preconditioner(given: object) -> None:
    """Refuse what can be neither called nor prepared.

    Raises
    ------
    OptionError
        That says so.
    """
    is_class = isinstance(given, type)
    if given is None or (not is_class and (callable(given) or isinstance(given, Preconditioner))):
        return
    hint = f"; did you mean {getattr(given, '__name__', '')}()?" if is_class else ""
    message = f"preconditioner={given!r}; expected a callable r -> z, an object with prepare(A, b, loop=...){hint}"
    raise OptionError(message)


def prepared(given: Preconditioner | Matvec | None, A: Operator, b: Array, loop: Loop) -> Prepared:
    """Return a preconditioner ready for use, whose results are checked; the identity if there is none.

    Raises
    ------
    ShapeError, DTypeError
        By the call, if what the preconditioner returns is not like r.
    """
    if given is None:
        return Prepared(lambda r: r)
    apply = given.prepare(A, b, loop=loop) if isinstance(given, Preconditioner) else given
    name = getattr(given, "__name__", type(given).__name__)

    def checked(r: Array) -> Array:
        z = apply(r)
        found = tuple(getattr(z, "shape", (None,)))
        if found != tuple(r.shape):
            message = (
                f"the preconditioner {name!r} returned shape {found}; expected {tuple(r.shape)}, like the residual"
            )
            raise ShapeError(message)
        if z.dtype != r.dtype:
            message = f"the preconditioner {name!r} returned dtype {z.dtype}; expected {r.dtype}, like the residual"
            raise DTypeError(message)
        return z

    return Prepared(checked, getattr(apply, "products", 0))


def is_eager(loop: Loop, like: Array) -> bool:
    """Whether the loop is Python's, whose body may read its arrays: such a loop hands on the very state it is given."""
    start = full(like, 0, shape=(), dtype=array_namespace(like).int32)
    met: list[Any] = []

    def body(k: Array) -> Array:
        met.append(k)
        return k + 1

    loop(lambda k: k < 1, body, start)
    return met[0] is start


class Filled(NamedTuple):
    """Columns under way."""

    k: Array
    columns: Array


def columns(A: Callable[[Array], Array], vectors: Array, loop: Loop) -> Array:
    """Return the products of A with several vectors, one after the other; vectors and products: (count, *batch, n).

    The only place that asks for several products, so that a product with many vectors at once can take it over.
    """
    xp, count = array_namespace(vectors), vectors.shape[0]
    if count == 0 or is_eager(loop, vectors):
        return xp.stack([A(vectors[i, ...]) for i in range(count)]) if count else vectors
    # one loop of the compiler: unrolled, the program would hold the product `count` times
    index = xp.reshape(xp.arange(count, dtype=xp.int32), (count, *(1,) * (vectors.ndim - 1)))

    def fill(s: Filled) -> Filled:
        product = A(xp.take(vectors, s.k[None], axis=0)[0, ...])
        return Filled(s.k + 1, xp.where(index == s.k, product[None, ...], s.columns))

    start = Filled(full(vectors, 0, shape=(), dtype=xp.int32), xp.zeros_like(vectors))
    filled: Filled = loop(lambda s: s.k < count, fill, start)
    return filled.columns
