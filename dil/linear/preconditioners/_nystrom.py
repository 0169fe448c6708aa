"""A preconditioner from the largest eigenvalues, which a random sketch finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from dil._base.arrays import array_namespace, device, dot, eps, factor_dtype, full
from dil._base.errors import OptionError
from dil._base.operator import Operator
from dil._base.options import check_integer, is_number
from dil._base.typing import Array, Loop
from dil.linear._right_hand_side import backend_of_system
from dil.linear.preconditioners._preconditioner import Prepared, columns, is_eager

RANK_FACTOR = 10.0
"""The rank is large enough when the smallest Ritz value is within this factor of the rest of the spectrum."""


@dataclass(frozen=True)
class Nystrom:
    """Scale down the largest eigenvalues of a matrix in which a few eigenvalues are much larger than the rest.

    Parameters
    ----------
    rank : int
        The number of columns of the sketch. Each costs one product. Use slightly more than the number of large
        eigenvalues.
    shift : float, optional
        The mu of the paper, in the units of A. A is modelled as a sketched part plus mu I. The default is zero, which
        suits a matrix whose small eigenvalues are close together. The A here already includes the damping of CG.
    adaptive : bool
        Double the rank until the smallest Ritz value is within a factor of ten of the shift. Without a shift, the
        smallest Ritz value is compared with the mean of the rest of the spectrum. Each such comparison costs one
        product. Under a trace (`jax.jit`, and every backward pass on JAX) shapes are fixed, so the rank is `max_rank`.
    max_rank : int, optional
        The rank at which doubling ends. The default is eight times the rank.
    depth : int
        The number of blocks of columns. The first block is random, and each further block is A times the one before.
        With depth=1 the sketch is that of the paper. If the spectrum has a long tail of small eigenvalues, more blocks
        find the large ones with fewer columns.
    seed : int
        The seed of the random sketch, which is the same for every problem of a batch.

    Notes
    -----
    The sketch gives A ~ U diag(l) U^T with the smallest Ritz value l_k. The preconditioner is
    P^-1 = (l_k + mu) U (diag(l) + mu)^-1 U^T + (I - U U^T). The paper factors the Gram matrix of the sketch by
    Cholesky. This class uses its eigenvalues, so an indefinite or singular A is allowed.

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
        """Return r -> P^-1 r, from a sketch of A."""
        n = b.shape[-1]
        if n == 0:
            return Prepared(lambda r: r)
        limit = min(n, (8 * self.rank if self.max_rank is None else self.max_rank) if self.adaptive else self.rank)
        grows = self.adaptive and is_eager(loop, b)
        sketch = _extended(Sketch.empty(b, self.seed), A, min(self.rank, limit) if grows else limit, self.depth, loop)
        checks = 0
        while grows and sketch.rank < limit:
            checks += 1
            if self._suffices(sketch, A):
                break
            sketch = _extended(sketch, A, min(2 * sketch.rank, limit), self.depth, loop)
        products = sketch.rank + (checks if self.shift is None else 0)
        return Prepared(_apply(_ritz(sketch), self.shift or 0.0), products)

    def _suffices(self, sketch: Sketch, A: Operator) -> bool:
        """Return whether the smallest Ritz value of every problem is near the rest of the spectrum."""
        xp, parts = array_namespace(sketch.like), _ritz(sketch)
        smallest = parts.values[..., -1:]
        if self.shift is not None:
            return bool(xp.all(~(smallest > RANK_FACTOR * self.shift)))
        v = sketch.draw(1)[..., 0]
        v = v - _project(parts.U, v)
        mean_rest = dot(v, A(v)) / dot(v, v)  # about the mean of the remaining eigenvalues
        return bool(xp.all(~(smallest > RANK_FACTOR * xp.abs(mean_rest))))  # True for NaN, for which no rank helps


class Ritz(NamedTuple):
    """A ~ U diag(values) U^T; U: (*batch, n, rank), values: (*batch, rank), in descending order."""

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
        """Return a sketch without columns."""
        import numpy as np

        none = full(b, 0.0, shape=(*b.shape, 0))
        return Sketch(b, np.random.default_rng(seed), none, none)

    @property
    def rank(self) -> int:
        """The number of columns."""
        return self.omega.shape[-1]

    def draw(self, count: int) -> Array:
        """Return normally distributed columns, (*batch, n, count), the same for each problem."""
        b = self.like
        backend = backend_of_system(b, "dil.linear.Nystrom")
        normal = self.generator.standard_normal((b.shape[-1], count))
        return full(b, 0.0)[..., None] + backend.asarray(normal, dtype=b.dtype, device=device(b))


def _extended(sketch: Sketch, A: Operator, rank: int, depth: int, loop: Loop) -> Sketch:
    """Return the sketch with `rank` columns, extended by `depth` blocks. Only new columns cost products."""
    block = -((sketch.rank - rank) // depth)
    while sketch.rank < rank:
        sketch = _with_block(sketch, A, min(block, rank - sketch.rank), loop)
    return sketch


def _with_block(sketch: Sketch, A: Operator, count: int, loop: Loop) -> Sketch:
    xp, old = array_namespace(sketch.like), sketch.omega
    new = sketch.draw(count)
    if sketch.rank:
        # the next block of the Krylov space, plus small random numbers in case that space is exhausted
        last = sketch.Y[..., -count:]
        unit = xp.max(xp.abs(last), axis=(-2, -1), keepdims=True)
        valid = xp.isfinite(unit) & (unit > 0)
        last = xp.where(valid, last, full(last, 0.0)) / xp.where(valid, unit, full(unit, 1.0))
        new = last + eps(xp, last.dtype) ** 0.5 * new
        for _ in range(2):  # the second time removes rounding errors
            new = new - old @ (old.mT @ new)
    new = xp.astype(xp.linalg.qr(xp.astype(new, factor_dtype(new)))[0], new.dtype)
    products = xp.moveaxis(columns(A, xp.moveaxis(new, -1, 0), loop), 0, -1)
    omega, Y = xp.concat([old, new], axis=-1), xp.concat([sketch.Y, products], axis=-1)
    return Sketch(sketch.like, sketch.generator, omega, Y)


def _ritz(sketch: Sketch) -> Ritz:
    """Return the eigenvectors and eigenvalues of the Nystrom approximation Y (Omega^T Y)^-1 Y^T."""
    xp, omega = array_namespace(sketch.like), sketch.omega
    dtype, kept = factor_dtype(omega), omega.dtype
    omega, products = xp.astype(omega, dtype), xp.astype(sketch.Y, dtype)
    unit = xp.max(xp.abs(products), axis=(-2, -1), keepdims=True)
    valid = xp.isfinite(unit) & (unit > 0)
    # an invalid problem gets the identity, which can be decomposed; the iteration then reports the failure
    unit = xp.where(valid, unit, full(unit, 1.0))
    Y = xp.where(valid, products, omega) / unit
    gram = omega.mT @ Y
    values, V = xp.linalg.eigh(0.5 * (gram + gram.mT))
    floor = 8 * sketch.rank * eps(xp, Y.dtype) * xp.max(xp.abs(values), axis=-1, keepdims=True)
    usable = values > floor  # the iteration handles zero and negative eigenvalues
    inverse_root = xp.where(usable, 1.0 / xp.sqrt(xp.where(usable, values, full(values, 1.0))), full(values, 0.0))
    U, s, _ = xp.linalg.svd((Y @ V) * inverse_root[..., None, :], full_matrices=False)
    return Ritz(xp.astype(U, kept), xp.astype(s * s * unit[..., 0], kept))


def _project(U: Array, r: Array) -> Array:
    return (U @ (U.mT @ r[..., None]))[..., 0]


def _apply(parts: Ritz, shift: float) -> Any:
    """Return r -> P^-1 r."""
    xp, (U, values) = array_namespace(parts.U), parts
    floor = 8 * values.shape[-1] * eps(xp, values.dtype) * values[..., :1]
    usable = values > floor  # smaller values are rounding of a singular matrix
    smallest = xp.min(xp.where(usable, values, values[..., :1]), axis=-1, keepdims=True)
    flattened = xp.where(
        usable, (smallest - values) / xp.where(usable, values + shift, full(values, 1.0)), 0.0 * values
    )

    def apply(r: Array) -> Array:
        z: Array = r + (U @ (flattened[..., None] * (U.mT @ r[..., None])))[..., 0]
        return z

    return apply
