"""The largest eigenvalues, found by a random sketch, as a preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, dot, eps, full
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.options import check_integer, is_number
from dil._base.typing import Array, Loop
from dil.linear._right_hand_side import backend_of_system
from dil.linear.preconditioners._preconditioner import Prepared, columns, is_eager

ENOUGH = 10.0
"""The rank suffices once the smallest Ritz value is within this factor of what is left of the spectrum."""


@dataclass(frozen=True)
class Nystrom:
    """Flatten the largest eigenvalues: for a few directions much stiffer than the rest.

    Parameters
    ----------
    rank : int
        Columns of the sketch: products with A that it costs. Take somewhat more than there are large eigenvalues.
    shift : float, optional
        The mu of the paper: treats A as a sketched part plus mu I, in the units of A. By default zero, which suits a
        matrix whose small eigenvalues lie together, wherever that is. The damping of CG is in A already.
    adaptive : bool
        Double the rank until it suffices: until the smallest Ritz value is within a factor of ten of the shift or, by
        default, of the mean of what the sketch leaves of the spectrum, which costs one product more each time. Under a
        trace (`jax.jit`, and every backward pass on JAX) shapes are fixed, and `max_rank` is taken at once.
    max_rank : int, optional
        Where doubling ends; by default eight times the rank.
    depth : int
        Blocks that the columns come in: the first is random, each further one is A times the one before. One is the
        paper's sketch; more find large eigenvalues over a long tail of small ones with fewer columns.
    seed : int
        Of the random sketch, which is the same for every problem of a batch.

    Notes
    -----
    With A ~ U diag(l) U^T from the sketch and l_k its smallest Ritz value,
    P^-1 = (l_k + mu) U (diag(l) + mu)^-1 U^T + (I - U U^T). The Gram matrix of the sketch is taken apart by its
    eigenvalues, where the paper takes a Cholesky factor, so an indefinite or singular A breaks nothing here.

    Sources: Frangella, Tropp and Udell 2021, Algorithm 2.1, eq. 5.3 and section 5.4; blocks of a Krylov space: Musco
    and Musco 2015, Algorithm 2; Tropp and Webber 2023.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> spectrum = np.concatenate([np.geomspace(1e2, 1e6, 20), np.ones(180)])
    >>> solver = dil.linear.CG(preconditioner=dil.linear.Nystrom(30))
    >>> found = solver(lambda p: spectrum * p, np.ones(200))
    >>> int(found.iterations) < 10, int(found.extra["products"]) < 45
    (True, True)
    """

    rank: int
    shift: float | None = None
    adaptive: bool = False
    max_rank: int | None = None
    depth: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("rank", self.rank, 1)
        check_integer("depth", self.depth, 1)
        check_integer("seed", self.seed, 0)
        if self.max_rank is not None:
            check_integer("max_rank", self.max_rank, self.rank)
        if self.shift is not None and not (is_number(self.shift) and self.shift >= 0):
            message = f"shift={self.shift!r}; expected a number >= 0, in the units of the matrix, or None"
            raise OptionError(message)
        if not isinstance(self.adaptive, bool):
            message = f"adaptive={self.adaptive!r}; expected True or False"
            raise OptionError(message)

    def prepare(self, A: Operator, b: Array, /, *, loop: Loop) -> Prepared:
        """Sketch A, and return r -> P^-1 r."""
        n = b.shape[-1]
        if n == 0:
            return Prepared(lambda r: r)
        most = min(n, (8 * self.rank if self.max_rank is None else self.max_rank) if self.adaptive else self.rank)
        growing = self.adaptive and is_eager(loop, b)
        sketch = _grown(Sketch.empty(b, self.seed), A, min(self.rank, most) if growing else most, self.depth, loop)
        looks = 0
        while growing and sketch.rank < most:
            looks += 1
            if self._suffices(sketch, A):
                break
            sketch = _grown(sketch, A, min(2 * sketch.rank, most), self.depth, loop)
        spent = sketch.rank + (looks if self.shift is None else 0)
        return Prepared(_apply(_take_apart(sketch), self.shift or 0.0), spent)

    def _suffices(self, sketch: Sketch, A: Operator) -> bool:
        """Whether the smallest Ritz value of every problem is near what is left of the spectrum."""
        xp, parts = array_namespace(sketch.like), _take_apart(sketch)
        smallest = parts.values[..., -1:]
        if self.shift is not None:
            return bool(xp.all(~(smallest > ENOUGH * self.shift)))
        v = sketch.draw(1)[..., 0]
        v = v - _project(parts.U, v)
        rest = dot(v, A(v)) / dot(v, v)  # about the mean of the eigenvalues that are left
        return bool(xp.all(~(smallest > ENOUGH * xp.abs(rest))))  # True for NaN, where no rank helps


class Ritz(NamedTuple):
    """A ~ U diag(values) U^T; U: (*batch, n, rank), values: (*batch, rank), falling."""

    U: Array
    values: Array


@dataclass(frozen=True)
class Sketch:
    """Orthonormal random columns and their products with A, (*batch, n, rank)."""

    like: Array
    generator: Any
    omega: Array
    Y: Array

    @staticmethod
    def empty(b: Array, seed: int) -> Sketch:
        """Return a sketch of no columns."""
        import numpy as np

        none = full(b, 0.0, shape=(*b.shape, 0))
        return Sketch(b, np.random.default_rng(seed), none, none)

    @property
    def rank(self) -> int:
        """The number of columns."""
        return self.omega.shape[-1]

    def draw(self, count: int) -> Array:
        """Return normal random columns, (*batch, n, count), the same for each problem."""
        b = self.like
        backend = backend_of_system(b, "dil.linear.Nystrom")
        normal = self.generator.standard_normal((b.shape[-1], count))
        return full(b, 0.0)[..., None] + backend.asarray(normal, dtype=b.dtype, device=device(b))


def _grown(sketch: Sketch, A: Operator, rank: int, depth: int, loop: Loop) -> Sketch:
    """Return the sketch with as many columns, in `depth` more blocks; those that it has cost no product again."""
    block = -((sketch.rank - rank) // depth)
    while sketch.rank < rank:
        sketch = _with_block(sketch, A, min(block, rank - sketch.rank), loop)
    return sketch


def _with_block(sketch: Sketch, A: Operator, count: int, loop: Loop) -> Sketch:
    xp, old = array_namespace(sketch.like), sketch.omega
    new = sketch.draw(count)
    if sketch.rank:
        # the next block of the Krylov space, with a trace of chance for where that is exhausted
        last = sketch.Y[..., -count:]
        top = xp.max(xp.abs(last), axis=(-2, -1), keepdims=True)
        sound = xp.isfinite(top) & (top > 0)
        last = xp.where(sound, last, full(last, 0.0)) / xp.where(sound, top, full(top, 1.0))
        new = last + eps(xp, last.dtype) ** 0.5 * new
        for _ in range(2):  # once more for what rounding left
            new = new - old @ (old.mT @ new)
    new, _ = xp.linalg.qr(new)
    products = xp.moveaxis(columns(A, xp.moveaxis(new, -1, 0), loop), 0, -1)
    omega, Y = xp.concat([old, new], axis=-1), xp.concat([sketch.Y, products], axis=-1)
    return Sketch(sketch.like, sketch.generator, omega, Y)


def _take_apart(sketch: Sketch) -> Ritz:
    """Return the eigenvectors and eigenvalues of the Nystrom approximation Y (Omega^T Y)^-1 Y^T."""
    xp, omega = array_namespace(sketch.like), sketch.omega
    top = xp.max(xp.abs(sketch.Y), axis=(-2, -1), keepdims=True)
    sound = xp.isfinite(top) & (top > 0)
    # a broken problem gets the identity, which decompositions do not refuse; it breaks again in the iteration
    top = xp.where(sound, top, full(top, 1.0))
    Y = xp.where(sound, sketch.Y, omega) / top
    gram = omega.mT @ Y
    w, V = xp.linalg.eigh(0.5 * (gram + gram.mT))
    floor = 8 * sketch.rank * eps(xp, Y.dtype) * xp.max(xp.abs(w), axis=-1, keepdims=True)
    usable = w > floor  # what is null or negative in the sketch is left to the iteration
    root = xp.where(usable, 1.0 / xp.sqrt(xp.where(usable, w, full(w, 1.0))), full(w, 0.0))
    U, s, _ = xp.linalg.svd((Y @ V) * root[..., None, :], full_matrices=False)
    return Ritz(U, s * s * top[..., 0])


def _project(U: Array, r: Array) -> Array:
    return (U @ (U.mT @ r[..., None]))[..., 0]


def _apply(parts: Ritz, shift: float) -> Any:
    """Return r -> P^-1 r."""
    xp, (U, values) = array_namespace(parts.U), parts
    floor = 8 * values.shape[-1] * eps(xp, values.dtype) * values[..., :1]
    usable = values > floor  # what is below is rounding, in a singular matrix
    smallest = xp.min(xp.where(usable, values, values[..., :1]), axis=-1, keepdims=True)
    flattened = xp.where(
        usable, (smallest - values) / xp.where(usable, values + shift, full(values, 1.0)), 0.0 * values
    )

    def apply(r: Array) -> Array:
        found: Array = r + (U @ (flattened[..., None] * (U.mT @ r[..., None])))[..., 0]
        return found

    return apply
