"""Dense solution of A x = b: the matrix built by products with the identity, then Cholesky, then LU."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from dil._base.arrays import array_namespace, device, eps, eye, full, nonzero_max_abs
from dil._base.operator import Operator, as_operator
from dil._base.solution import Solution
from dil._base.status import Status, first_of
from dil._base.typing import Array, Loop, Matvec
from dil._frameworks.protocol import Backend
from dil._frameworks.random_vectors import standard_normal
from dil.linear._cg import CG
from dil.linear._right_hand_side import backend_of_system


@dataclass(frozen=True)
class Direct:
    """Solve (A + damping I) x = b by a factorisation of the dense matrix, each problem of a batch by itself.

    Parameters
    ----------
    damping : float
        Added to the diagonal of A, in the units of A.

    Notes
    -----
    The matrix costs n products with A, taken together where the framework can batch them. A symmetric matrix is
    factored by Cholesky, and by LU where it proves not to be positive definite; others by LU. One step of refinement
    follows where a problem of the batch needs it (Higham 2002, Algorithm 12.1).

    A problem counts as solved when the residual is as small as rounding leaves it, ||b - A x|| <= 16 eps sqrt(n)
    (||A|| ||x|| + ||b||), and A is not singular to working precision: its condition number, estimated from below by b
    and by a random right-hand side, is below eps ** (-2/3), 2.7e10 in float64 and 4.1e4 in float32. Otherwise it ends
    SINGULAR, with zero where there is no finite solution. Norms are maximum norms.

    Raises
    ------
    OptionError
        If an option is out of range.

    Examples
    --------
    >>> import numpy as np, dil
    >>> H = np.asarray([[4.0, 1.0], [1.0, -3.0]])
    >>> x = dil.linear.Direct()(lambda p: p @ H, np.asarray([1.0, 2.0]))
    >>> np.allclose(H @ x.value, [1.0, 2.0])
    True
    """

    damping: float = 0.0

    def __post_init__(self) -> None:
        CG(damping=self.damping)

    def __call__(
        self, A: Operator | Matvec, b: Array, /, *, loop: Loop | None = None, x0: Array | None = None
    ) -> Solution:
        """Solve A x = b for b: (*batch, n); status: batch. A start is of no use here, and ignored."""
        backend = backend_of_system(b, "dil.linear.Direct", x0)
        A = as_operator(A)
        matrix = dense(A, b, backend)
        if self.damping:
            matrix = matrix + self.damping * eye(b.shape[-1], b)
        return solve_dense(matrix, b, backend, symmetric=A.symmetric)


def dense(A: Operator, b: Array, backend: Backend) -> Array:
    """Return the matrix of each problem, (*batch, n, n), by products with the columns of the identity."""
    xp, n = array_namespace(b), b.shape[-1]
    if n == 0:
        return full(b, 0.0, shape=(*b.shape, n))
    rows = xp.reshape(eye(b.shape[-1], b), (n, *(1,) * (b.ndim - 1), n))
    columns = backend.loops.map_rows(A, xp.broadcast_to(rows, (n, *b.shape)))
    moved: Array = xp.moveaxis(columns, 0, -1)
    return moved


def solve_dense(matrix: Array, b: Array, backend: Backend, *, symmetric: bool) -> Solution:
    """Solve dense systems, (*batch, n, n) and (*batch, n)."""
    xp, n = array_namespace(b), b.shape[-1]
    size = _top(b, -1)
    zero = size == 0
    unit = xp.where(zero, 1.0, size)[..., None]
    # a second right-hand side tells the condition number, ||A|| ||A^-1 e|| / ||e|| from below; a random one, since any
    # that has a pattern is orthogonal to the null vectors of matrices that have one, such as a Laplacian's constants
    probe = standard_normal(backend, full(b, 0.0, shape=(n,)), 1, 0)[0, ...]
    probe = xp.broadcast_to(probe / nonzero_max_abs(probe), b.shape)
    right = xp.stack([b / unit, probe], axis=-1)
    factor = _Factor(matrix, backend, symmetric)
    x, bent = factor.solve(right)
    norm_A, machine = _top(xp.sum(xp.abs(matrix), axis=-1), -1), eps(xp, b.dtype)
    slack = 16 * machine * math.sqrt(max(n, 1))

    def left(x: Array) -> tuple[Array, Array]:
        r = right - matrix @ x
        return r, _top(r, -2)[..., 0]

    def enough(x: Array) -> Array:
        return slack * (norm_A * _top(x, -2)[..., 0] + 1.0)

    def refine(s: Refined) -> Refined:
        finer = xp.where(s.loose[..., None, None], s.x + backend.dense.lu_solve(matrix, s.r), s.x)
        return Refined(s.loose, finer, *left(finer))

    first = Refined(bent, x, *left(x))
    first = first._replace(loose=~zero & (first.size > 0.25 * enough(x)))  # False for NaN, which no step mends
    last = backend.loops.run_if(xp.any(first.loose), refine, first)
    x, residual = last.x, last.size
    condition = norm_A * _top(_top(x, -2), -1)
    tight = residual <= enough(x)
    solved = zero | (tight & (condition < machine ** (-2 / 3)))
    count = xp.where(zero, 0, full(size, n, dtype=xp.int32))
    most = float(xp.finfo(b.dtype).max) / xp.where(unit > 1, unit, full(unit, 1.0))
    fits = xp.abs(x[..., 0]) <= most  # an answer beyond the dtype is none; False for NaN
    told = xp.isfinite(size) & xp.isfinite(norm_A) & (zero | ~solved | xp.all(fits, axis=-1))
    return Solution(
        xp.where(fits & ~zero[..., None], x[..., 0], full(x[..., 0], 0.0)) * unit,
        first_of([(solved & told, Status.CONVERGED), (told, Status.SINGULAR)], Status.NON_FINITE),
        count,
        xp.where(zero, 0.0, xp.where(xp.isfinite(residual), residual, 1.0)),
        {"condition": condition, "indefinite": bent & solved & ~zero, "products": count},
    )


class Refined(NamedTuple):
    """Solutions before and after refinement."""

    loose: Array
    """Whose residual is larger than rounding alone would have it."""
    x: Array
    r: Array
    size: Array
    """The largest entry of the first right-hand side's residual."""


class _Factor(NamedTuple):
    """Dense matrices, (*batch, n, n), and how to solve with them."""

    matrix: Array
    backend: Backend
    symmetric: bool

    def solve(self, right: Array) -> tuple[Array, Array]:
        """Solve by Cholesky where that succeeds, else by LU; return also where a symmetric matrix was not positive."""
        xp, backend = array_namespace(right), self.backend
        if not self.symmetric:
            x = backend.dense.lu_solve(self.matrix, right)
            return x, xp.zeros(x.shape[:-2], dtype=xp.bool, device=device(x))
        x = backend.dense.cholesky_solve(self.matrix, right)
        failed = ~xp.all(xp.isfinite(x), axis=(-2, -1), keepdims=True)

        def by_lu(x: Array) -> Array:
            return xp.where(failed, backend.dense.lu_solve(self.matrix, right), x)  # type: ignore[no-any-return]

        return backend.loops.run_if(xp.any(failed), by_lu, x), failed[..., 0, 0]


def _top(x: Array, axis: int) -> Array:
    xp = array_namespace(x)
    if x.shape[axis] == 0:
        return xp.sum(x, axis=axis)  # type: ignore[no-any-return]
    return xp.max(xp.abs(x), axis=axis)  # type: ignore[no-any-return]
